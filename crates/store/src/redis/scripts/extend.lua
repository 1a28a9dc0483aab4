-- Renews the holder's lease; never shortens it.
-- ARGV 3 the holder's fence, 4 the lease's length
local there = redis.call('GET', KEYS[2])
if not there or ended(there) then return {2, now} end
if not is_meant(there, ARGV[3]) then return as_it_is(there) end
local revision = next_revision(there)
local lease = later(ARGV[4])
local ahi, alo = struct.unpack('>I4I4', lease)
local bhi, blo = struct.unpack('>I4I4', there, 29)
if less(ahi, alo, bhi, blo) then lease = string.sub(there, 29, 36) end
redis.call('SETRANGE', KEYS[2], 20, revision .. lease .. string.sub(there, 37, 44) .. now)
return {0, now, ARGV[3] .. revision}
