-- Removes the record that is meant, and remembers its fence.
-- ARGV 3 which record: the fence, or fence and revision, 4 the id, 5 how to publish or '', 6 the channel
local there = redis.call('GET', KEYS[2])
if not there or ended(there) then return {2, now} end
if not is_meant(there, ARGV[3]) then return as_it_is(there) end
local fhi, flo = struct.unpack('>I4I4', there, 13)
if less(mhi, mlo, fhi, flo) then redis.call('SETRANGE', KEYS[1], 16, string.sub(there, 13, 20)) end
redis.call('DEL', KEYS[2])
if is_apart(there) then redis.call('DEL', KEYS[4]) end
if string.byte(there, 4) == 1 then redis.call('SREM', KEYS[3], ARGV[4]) end
if ARGV[5] ~= '' then redis.call(ARGV[5], ARGV[6], '') end
return {0, now, string.sub(there, 13, 28), there}
