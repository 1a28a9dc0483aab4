-- Reads the record.
local there = redis.call('GET', KEYS[2])
if not there or ended(there) then return {2, now} end
return as_it_is(there)
