-- Renews the holder's lease; never shortens it.
-- ARGV 1 goes on with `h`, the holder's fence and eight bytes of nothing (17), and the lease's length (8)
if readable and not ended and byte(there, 3) == 1 and sub(there, 21, 28) == sub(said, 98, 105) then
  local rhi, rlo = unpack('>I4I4', there, 29)
  rlo = rlo + 1
  if rlo >= 4294967296 then rhi, rlo = rhi + 1, rlo - 4294967296 end
  ahi, alo = unpack('>I4I4', said, 114)
  ahi, alo = ahi + nhi, alo + nlo
  if alo >= 4294967296 then ahi, alo = ahi + 1, alo - 4294967296 end
  if ahi >= 4294967296 then ahi, alo = 4294967295, 4294967295 end
  local lhi, llo = unpack('>I4I4', there, 37)
  if ahi < lhi or (ahi == lhi and alo < llo) then ahi, alo = lhi, llo end
  local block = pack('>I4I4I4I4', rhi, rlo, ahi, alo) .. sub(there, 45, 52) .. now
  call('SADD', KEYS[3], sub(KEYS[4], 17, 59))
  call('SETRANGE', KEYS[4], 28, block)
  return {'0' .. now, sub(there, 1, 28) .. block .. sub(there, 61)}
end
