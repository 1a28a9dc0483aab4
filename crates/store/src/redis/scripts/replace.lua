-- Replaces the record that is meant.
-- ARGV 3 the bytes before the store's block, 4 those after it, 5 which record: the fence, or fence and revision
-- 6 '' or `n` for a new fence, 7 '' to keep the lease, `o` to end it, or its length, 8 '' or how long to keep it
-- 9 milliseconds until the server removes it, 10 the id, 11 how to publish or '', 12 the channel
-- 13 a body of its own or '', 14 its end
local there = redis.call('GET', KEYS[2])
if not there or ended(there) then return {2, now} end
if not is_meant(there, ARGV[5]) then return as_it_is(there) end

local fence = string.sub(there, 13, 20)
if ARGV[6] == 'n' then fence = next_fence(struct.unpack('>I4I4', fence)) end
local revision = next_revision(there)
local lease = string.sub(there, 29, 36)
if ARGV[7] == 'o' then lease = '\0\0\0\0\0\0\0\0' elseif ARGV[7] ~= '' then lease = later(ARGV[7]) end
local keep = '\0\0\0\0\0\0\0\0'
if ARGV[8] ~= '' then keep = later(ARGV[8]) end
local value = ARGV[3] .. fence .. revision .. lease .. keep .. now .. ARGV[4]
if ARGV[8] == '' then
  redis.call('SET', KEYS[2], value)
else
  redis.call('SET', KEYS[2], value, 'PX', ARGV[9])
end

local was_open, is_open = string.byte(there, 4) == 1, string.byte(ARGV[3], 4) == 1
if was_open and not is_open then redis.call('SREM', KEYS[3], ARGV[10]) end
if is_open and not was_open then redis.call('SADD', KEYS[3], ARGV[10]) end

if ARGV[13] ~= '' then
  local hi, lo = struct.unpack('>I4I4', ARGV[14])
  local left = ((hi - nhi) * 4294967296 + (lo - nlo)) / 1000
  if left >= 1 then
    redis.call('SET', KEYS[4], ARGV[13], 'PX', string.format('%.0f', left + 1))
  elseif is_apart(there) then
    redis.call('DEL', KEYS[4])
  end
elseif is_apart(there) then
  redis.call('DEL', KEYS[4])
end
if ARGV[11] ~= '' then redis.call(ARGV[11], ARGV[12], '') end
return {0, now, fence .. revision, tostring(#there)}
