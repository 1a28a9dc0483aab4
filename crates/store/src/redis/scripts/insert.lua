-- Makes the record in flight, unless one is there.
-- ARGV 3 the bytes before the store's block, 4 those after it, 5 the lease's length, 6 the id
local there = redis.call('GET', KEYS[2])
local lhi, llo = 0, 0
if there then
  if not ended(there) then return as_it_is(there) end
  lhi, llo = struct.unpack('>I4I4', there, 13)
end
local fence = next_fence(lhi, llo)
local block = fence .. '\0\0\0\0\0\0\0\1' .. later(ARGV[5]) .. '\0\0\0\0\0\0\0\0' .. now
redis.call('SET', KEYS[2], ARGV[3] .. block .. ARGV[4])
redis.call('SADD', KEYS[3], ARGV[6])
return {0, now, fence .. '\0\0\0\0\0\0\0\1'}
