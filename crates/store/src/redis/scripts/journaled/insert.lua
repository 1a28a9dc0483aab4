-- Makes the record in flight, unless one is there that was not released (bit 2 of its flags).
-- ARGV 1 goes on with the lease's length (8) and the bytes before the store's block (20); 3 is those after it
if not there or ended or (readable and byte(there, 4) >= 4) then
  -- S4: above the clock, every fence of the partition, and the key's last.
  local fhi, flo = nhi, nlo
  if mhi > fhi or (mhi == fhi and mlo >= flo) then fhi, flo = mhi, mlo + 1 end
  if there then
    ahi, alo = unpack('>I4I4', there, 21)
    if ahi > fhi or (ahi == fhi and alo >= flo) then fhi, flo = ahi, alo + 1 end
  end
  if flo >= 4294967296 then fhi, flo = fhi + 1, flo - 4294967296 end
  local fence = pack('>I4I4', fhi, flo)
  ahi, alo = unpack('>I4I4', said, 97)
  ahi, alo = ahi + nhi, alo + nlo
  if alo >= 4294967296 then ahi, alo = ahi + 1, alo - 4294967296 end
  if ahi >= 4294967296 then ahi, alo = 4294967295, 4294967295 end
  local block = fence .. '\0\0\0\0\0\0\0\1' .. pack('>I4I4I4I4', ahi, alo, 0, 0) .. now
  -- Noted first: what stops half-way is noted and not there.
  call('SADD', KEYS[3], sub(KEYS[4], 17, 59))
  call('SETRANGE', KEYS[1], 16, fence .. pack('>I4I4', whi, wlo))
  if there then
    call('SET', KEYS[4], sub(said, 105, 124) .. block .. ARGV[3])
  elseif not call('SET', KEYS[4], sub(said, 105, 124) .. block .. ARGV[3], 'NX') then
    -- MGET tells a value of another kind as none.
    return '7' .. now
  end
  return '0' .. now .. block
end
