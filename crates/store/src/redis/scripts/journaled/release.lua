-- Says of the record that is meant that nothing was done. It stays under its fence until the journal knows (A9); what it
-- was before is read no more.
-- ARGV 1 goes on with which record, as in `replace.lua` (17)
if readable and not ended and (
  (sub(said, 97, 97) == 'h' and byte(there, 3) == 1 and sub(there, 21, 28) == sub(said, 98, 105)) or
  (sub(said, 97, 97) == 's' and sub(there, 21, 36) == sub(said, 98, 113))
) then
  local rhi, rlo = unpack('>I4I4', there, 29)
  rlo = rlo + 1
  if rlo >= 4294967296 then rhi, rlo = rhi + 1, rlo - 4294967296 end
  local block = pack('>I4I4', rhi, rlo) .. '\0\0\0\0\0\0\0\0' .. sub(there, 45, 52) .. now
  local flags = string.char(byte(there, 4) % 2 + 6)
  there = sub(there, 1, 2) .. '\2' .. flags .. sub(there, 5, 28) .. block .. sub(there, 61)
  call('SADD', KEYS[3], sub(KEYS[4], 17, 59))
  call('SET', KEYS[4], there)
  call('PUBLISH', sub(KEYS[4], 1, 59), '')
  return {'0' .. now, there}
end
