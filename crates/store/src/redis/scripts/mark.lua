-- Gives a partition its marker, or raises the time that is written down in it. Stands alone.
-- KEYS 1 the marker
-- ARGV 1 an epoch for a marker that is missing, 2 the tag of an epoch that this server gives, or '' where any will do
-- Returns the marker, the server's time, and 1 where the epoch is new.
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local nhi = math.floor(micros / 4294967296)
local nlo = micros - nhi * 4294967296
--MOVED
local now = struct.pack('>I4I4', nhi, nlo)
local marker = redis.call('GET', KEYS[1])
if not marker or #marker ~= 24 then
  marker = ARGV[1] .. now
  redis.call('SET', KEYS[1], marker)
  return {marker, now, 1}
end
local is_new = 0
local epoch, hwm = string.sub(marker, 1, 16), string.sub(marker, 17, 24)
if ARGV[2] ~= '' and string.sub(marker, 1, 8) ~= ARGV[2] then
  epoch, is_new = ARGV[1], 1
end
local mhi, mlo = struct.unpack('>I4I4', hwm)
local is_later = mhi < nhi or (mhi == nhi and mlo < nlo)
if is_later then hwm = now end
if is_new == 1 or is_later then
  marker = epoch .. hwm
  redis.call('SET', KEYS[1], marker)
end
return {marker, now, is_new}
