-- Makes the record in flight, unless one is there.
-- ARGV 1 goes on with the lease's length (8), the id (32) and the bytes before the store's block (12), 2 those after it
if not there or ended then
--EVICTED
  -- S4: above the clock, every fence whose record is gone, and the key's last.
  local fhi, flo = nhi, nlo
  if mhi > fhi or (mhi == fhi and mlo >= flo) then fhi, flo = mhi, mlo + 1 end
  if there then
    ahi, alo = unpack('>I4I4', there, 13)
    if ahi > fhi or (ahi == fhi and alo >= flo) then fhi, flo = ahi, alo + 1 end
  end
  if flo >= 4294967296 then fhi, flo = fhi + 1, flo - 4294967296 end
  local fence = pack('>I4I4', fhi, flo)
  ahi, alo = unpack('>I4I4', said, 25)
  ahi, alo = ahi + nhi, alo + nlo
  if alo >= 4294967296 then ahi, alo = ahi + 1, alo - 4294967296 end
  if ahi >= 4294967296 then ahi, alo = 4294967295, 4294967295 end
  local block = fence .. '\0\0\0\0\0\0\0\1' .. pack('>I4I4I4I4', ahi, alo, 0, 0) .. now
  if there then
    call('SET', KEYS[2], sub(said, 65, 76) .. block .. ARGV[2])
  elseif not call('SET', KEYS[2], sub(said, 65, 76) .. block .. ARGV[2], 'NX') then
    -- MGET tells a value of another kind as none.
    return '7' .. now
  end
  call('SADD', sub(KEYS[1], 1, 16) .. 'open', sub(said, 33, 64))
  return '0' .. now .. fence .. '\0\0\0\0\0\0\0\1'
end
