-- Keeps what another store says of a settled record, unless a later word is there. Stands alone.
-- KEYS 1 the partition's marker, 2 the hint
-- ARGV 1 the epoch at which the other store was asked, of which the second half counts, as in `begin.lua`; 2 the hint, 3 milliseconds until the server removes it
-- A hint begins with that epoch (16 bytes), fence and revision (8 each) and the body's end (8). Nothing more says that
-- there is nothing to show up to this fence and revision, whatever was lost since.
-- Returns 1, 0 where a later word is there, or 9 where the epoch is another.
local marker, there = redis.call('GET', KEYS[1]), redis.call('GET', KEYS[2])
local epoch = string.sub(ARGV[1], 9, 16)
if not marker or string.sub(marker, 9, 16) ~= epoch then return 9 end
if there and #there >= 40 and (#there == 40 or string.sub(there, 9, 16) == epoch) then
  local a, b, c, d = struct.unpack('>I4I4I4I4', there, 17)
  local e, f, g, h = struct.unpack('>I4I4I4I4', ARGV[2], 17)
  local is_later
  if e ~= a then is_later = e > a elseif f ~= b then is_later = f > b elseif g ~= c then is_later = g > c else is_later = h > d end
  if not is_later then return 0 end
end
redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3])
return 1
