-- Replaces the record that is meant.
-- ARGV 1 goes on with which record: `h` and its fence, or `s` with fence and revision (17 in all), `n` for a new fence or
-- `k`, then `k` to keep the lease, `o` to end it or `f` and its length (9), `o` without an end or `f` and how long to keep
-- it (9), the id (32) and the bytes before the store's block (12); 2 is those after it, 3 milliseconds until the server
-- removes it; 4, if any, is a body of its own and 5 its end
if readable and not ended and (
  (sub(said, 25, 25) == 'h' and string.byte(there, 4) == 1 and sub(there, 13, 20) == sub(said, 26, 33)) or
  (sub(said, 25, 25) == 's' and sub(there, 13, 28) == sub(said, 26, 41))
) then
  local fence = sub(there, 13, 20)
  if sub(said, 42, 42) == 'n' then
--EVICTED
    local fhi, flo = unpack('>I4I4', fence)
    flo = flo + 1
    if flo >= 4294967296 then fhi, flo = fhi + 1, flo - 4294967296 end
    if mhi > fhi or (mhi == fhi and mlo >= flo) then fhi, flo = mhi, mlo + 1 end
    if nhi > fhi or (nhi == fhi and nlo > flo) then fhi, flo = nhi, nlo end
    if flo >= 4294967296 then fhi, flo = fhi + 1, flo - 4294967296 end
    fence = pack('>I4I4', fhi, flo)
  end
  local rhi, rlo = unpack('>I4I4', there, 21)
  rlo = rlo + 1
  if rlo >= 4294967296 then rhi, rlo = rhi + 1, rlo - 4294967296 end
  local revision = pack('>I4I4', rhi, rlo)
  local lease, how = sub(there, 29, 36), sub(said, 43, 43)
  if how == 'o' then
    lease = '\0\0\0\0\0\0\0\0'
  elseif how == 'f' then
    ahi, alo = unpack('>I4I4', said, 44)
    ahi, alo = ahi + nhi, alo + nlo
    if alo >= 4294967296 then ahi, alo = ahi + 1, alo - 4294967296 end
    if ahi >= 4294967296 then ahi, alo = 4294967295, 4294967295 end
    lease = pack('>I4I4', ahi, alo)
  end
  if sub(said, 52, 52) == 'f' then
    ahi, alo = unpack('>I4I4', said, 53)
    ahi, alo = ahi + nhi, alo + nlo
    if alo >= 4294967296 then ahi, alo = ahi + 1, alo - 4294967296 end
    if ahi >= 4294967296 then ahi, alo = 4294967295, 4294967295 end
    local block = fence .. revision .. lease .. pack('>I4I4', ahi, alo) .. now
    call('SET', KEYS[2], sub(said, 93, 104) .. block .. ARGV[2], 'PX', ARGV[3])
  else
    call('SET', KEYS[2], sub(said, 93, 104) .. fence .. revision .. lease .. '\0\0\0\0\0\0\0\0' .. now .. ARGV[2])
  end

  local was_open, is_open = string.byte(there, 4) == 1, string.byte(said, 96) == 1
  if was_open ~= is_open then
    call(is_open and 'SADD' or 'SREM', sub(KEYS[1], 1, 16) .. 'open', sub(said, 61, 92))
  end
  local left = 0
  if ARGV[4] then
    ahi, alo = unpack('>I4I4', ARGV[5])
    left = ((ahi - nhi) * 4294967296 + (alo - nlo)) / 1000
  end
  if left >= 1 then
    call('SET', KEYS[2] .. ':b', ARGV[4], 'PX', string.format('%.0f', left + 1))
  elseif string.byte(there, 6) % 64 >= 32 then
    call('DEL', KEYS[2] .. ':b')
  end
  call('PUBLISH', KEYS[2], '')
  return '0' .. now .. fence .. revision .. pack('>I4', #there)
end
