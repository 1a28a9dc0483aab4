-- Renews the holder's lease; never shortens it.
-- ARGV 1 goes on with the holder's fence (8) and the lease's length (8)
if readable and not ended and string.byte(there, 4) == 1 and sub(there, 13, 20) == sub(said, 25, 32) then
  local rhi, rlo = unpack('>I4I4', there, 21)
  rlo = rlo + 1
  if rlo >= 4294967296 then rhi, rlo = rhi + 1, rlo - 4294967296 end
  local revision = pack('>I4I4', rhi, rlo)
  ahi, alo = unpack('>I4I4', said, 33)
  ahi, alo = ahi + nhi, alo + nlo
  if alo >= 4294967296 then ahi, alo = ahi + 1, alo - 4294967296 end
  if ahi >= 4294967296 then ahi, alo = 4294967295, 4294967295 end
  local lhi, llo = unpack('>I4I4', there, 29)
  if ahi < lhi or (ahi == lhi and alo < llo) then ahi, alo = lhi, llo end
  call('SETRANGE', KEYS[2], 20, revision .. pack('>I4I4', ahi, alo) .. sub(there, 37, 44) .. now)
  return '0' .. now .. sub(there, 13, 20) .. revision
end
