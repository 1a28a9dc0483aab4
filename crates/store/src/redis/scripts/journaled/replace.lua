-- Replaces the record that is meant. While it is dirty it has no end in Redis.
-- ARGV 1 goes on with which record: `h` and its fence, or `s` with fence and revision (17 in all), `n` for a new fence or
-- `k`, then `k` to keep the lease, `o` to end it or `f` and its length (9), `o` without an end or `f` and how long to keep
-- it (9), and the bytes before the store's block (20); 3 is those after it
if readable and not ended and (
  (sub(said, 97, 97) == 'h' and byte(there, 3) == 1 and sub(there, 21, 28) == sub(said, 98, 105)) or
  (sub(said, 97, 97) == 's' and sub(there, 21, 36) == sub(said, 98, 113))
) then
  local fence, is_next = sub(there, 21, 28), sub(said, 114, 114) == 'n'
  if is_next then
    local fhi, flo = unpack('>I4I4', fence)
    flo = flo + 1
    if flo >= 4294967296 then fhi, flo = fhi + 1, flo - 4294967296 end
    if mhi > fhi or (mhi == fhi and mlo >= flo) then fhi, flo = mhi, mlo + 1 end
    if nhi > fhi or (nhi == fhi and nlo > flo) then fhi, flo = nhi, nlo end
    if flo >= 4294967296 then fhi, flo = fhi + 1, flo - 4294967296 end
    fence = pack('>I4I4', fhi, flo)
  end
  local rhi, rlo = unpack('>I4I4', there, 29)
  rlo = rlo + 1
  if rlo >= 4294967296 then rhi, rlo = rhi + 1, rlo - 4294967296 end
  local lease, keep, how = sub(there, 37, 44), '\0\0\0\0\0\0\0\0', sub(said, 115, 115)
  if how == 'o' then
    lease = keep
  elseif how == 'f' then
    ahi, alo = unpack('>I4I4', said, 116)
    ahi, alo = ahi + nhi, alo + nlo
    if alo >= 4294967296 then ahi, alo = ahi + 1, alo - 4294967296 end
    if ahi >= 4294967296 then ahi, alo = 4294967295, 4294967295 end
    lease = pack('>I4I4', ahi, alo)
  end
  if sub(said, 124, 124) == 'f' then
    ahi, alo = unpack('>I4I4', said, 125)
    ahi, alo = ahi + nhi, alo + nlo
    if alo >= 4294967296 then ahi, alo = ahi + 1, alo - 4294967296 end
    if ahi >= 4294967296 then ahi, alo = 4294967295, 4294967295 end
    keep = pack('>I4I4', ahi, alo)
  end
  local block = fence .. pack('>I4I4', rhi, rlo) .. lease .. keep .. now
  call('SADD', KEYS[3], sub(KEYS[4], 17, 59))
  if is_next then call('SETRANGE', KEYS[1], 16, fence .. pack('>I4I4', whi, wlo)) end
  call('SET', KEYS[4], sub(said, 133, 152) .. block .. ARGV[3])
  call('PUBLISH', sub(KEYS[4], 1, 59), '')
  return '0' .. now .. block
end
