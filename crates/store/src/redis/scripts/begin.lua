-- What every step begins with, before its own file. Written out, without functions: making one costs more than what it
-- would do.
-- KEYS 1 the partition's marker, 2 the record
-- ARGV 1 begins with the epoch that this process knows and the latest time that it was told: 16 and 8 bytes. Of the epoch
-- the second half counts: the first names the server, which is another one once the slot has moved.
-- Numbers of 64 bits are pairs (hi, lo), since Lua's are doubles. Bytes are compared for equality only.
local call, sub, pack, unpack, said = redis.call, string.sub, struct.pack, struct.unpack, ARGV[1]
local both = call('MGET', KEYS[1], KEYS[2])
local marker, there = both[1], both[2]
if not marker or #marker ~= 24 or sub(marker, 9, 16) ~= sub(said, 9, 16) then return '9' end

-- Now: microseconds of the server's clock, and never before what this process was told. A clock that is more than two
-- seconds behind what was written down is not to be trusted.
local time = call('TIME')
local nlo = time[1] * 1000000 + time[2]
local nhi = (nlo - nlo % 4294967296) / 4294967296
nlo = nlo % 4294967296
--MOVED
local mhi, mlo = unpack('>I4I4', marker, 17)
if (mhi - nhi) * 4294967296 + mlo - nlo > 2000000 then return '8' .. pack('>I4I4', nhi, nlo) .. sub(marker, 17) end
local ahi, alo = unpack('>I4I4', said, 17)
if nhi < ahi or (nhi == ahi and nlo < alo) then nhi, nlo = ahi, alo end
local now = pack('>I4I4', nhi, nlo)

-- Whether it is a record of this version, whose header may be read; S11: one whose end has come is none for any step,
-- whether or not the server has removed it.
local readable, ended = false, false
if there and #there >= 52 and sub(there, 1, 3) == 'OW\1' then
  readable = true
  ahi, alo = unpack('>I4I4', there, 37)
  ended = (ahi > 0 or alo > 0) and (ahi < nhi or (ahi == nhi and alo <= nlo))
end
