-- Removes the record that is meant, and remembers its fence.
-- ARGV 1 goes on with which record, as in `replace.lua` (17), and the id (32)
if readable and not ended and (
  (sub(said, 25, 25) == 'h' and string.byte(there, 4) == 1 and sub(there, 13, 20) == sub(said, 26, 33)) or
  (sub(said, 25, 25) == 's' and sub(there, 13, 28) == sub(said, 26, 41))
) then
  ahi, alo = unpack('>I4I4', there, 13)
  if ahi > mhi or (ahi == mhi and alo > mlo) then call('SETRANGE', KEYS[1], 16, sub(there, 13, 20)) end
  call('DEL', KEYS[2])
  if string.byte(there, 6) % 64 >= 32 then call('DEL', KEYS[2] .. ':b') end
  if string.byte(there, 4) == 1 then call('SREM', sub(KEYS[1], 1, 16) .. 'open', sub(said, 42, 73)) end
  call('PUBLISH', KEYS[2], '')
  return {'0' .. now .. sub(there, 13, 28), there}
end
