-- Gives a partition its marker, or raises the time that is written down in it. Stands alone.
-- KEYS 1 the marker
-- ARGV 1 an epoch for one that is made, 2 what an epoch may begin with, eight bytes each, or '' where anything will do;
-- one that begins otherwise than the first is of a slot that moved here, and begins like it from now on
-- 3 the least time that is written down in one that is made
-- Returns the marker, the server's time, 0, 1 where there was none or 2 where it was of another history, and what was
-- written down before.
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local nhi = math.floor(micros / 4294967296)
local nlo = micros - nhi * 4294967296
--MOVED
local now = struct.pack('>I4I4', nhi, nlo)
local marker = redis.call('GET', KEYS[1])
if not marker or #marker ~= 24 then
  local fhi, flo = struct.unpack('>I4I4', ARGV[3])
  marker = ARGV[1] .. ((nhi < fhi or (nhi == fhi and nlo < flo)) and ARGV[3] or now)
  redis.call('SET', KEYS[1], marker)
  return {marker, now, 1, ''}
end
local found = 0
local epoch, written = string.sub(marker, 1, 16), string.sub(marker, 17, 24)
if ARGV[2] ~= '' then
  found = 2
  for at = 1, #ARGV[2], 8 do
    if string.sub(marker, 1, 8) == string.sub(ARGV[2], at, at + 7) then found = 0 end
  end
  epoch = (found == 2) and ARGV[1] or string.sub(ARGV[1], 1, 8) .. string.sub(epoch, 9)
end
local whi, wlo = struct.unpack('>I4I4', written)
local is_later = whi < nhi or (whi == nhi and wlo < nlo)
local before = written
if is_later then written = now end
if marker ~= epoch .. written then
  marker = epoch .. written
  redis.call('SET', KEYS[1], marker)
end
return {marker, now, found, before}
