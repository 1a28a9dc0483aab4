-- What every step begins with, before its own file.
-- KEYS 1 the partition's marker, 2 the record, 3 the partition's open set, 4 the record's body
-- ARGV 1 the epoch that this process knows, 2 the latest time that it was told
-- Numbers of 64 bits are pairs (high, low), since Lua's are doubles. Bytes are compared for equality only.

local function plus(ahi, alo, bhi, blo)
  local hi, lo = ahi + bhi, alo + blo
  if lo >= 4294967296 then hi, lo = hi + 1, lo - 4294967296 end
  if hi >= 4294967296 then return 4294967295, 4294967295 end
  return hi, lo
end

local function less(ahi, alo, bhi, blo)
  return ahi < bhi or (ahi == bhi and alo < blo)
end

local marker = redis.call('GET', KEYS[1])
if not marker or #marker ~= 24 or string.sub(marker, 1, 16) ~= ARGV[1] then
  return {9, marker or ''}
end

-- Now: microseconds of the server's clock, and never before what this process was told.
local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local nhi = math.floor(micros / 4294967296)
local nlo = micros - nhi * 4294967296
--MOVED
local mhi, mlo = struct.unpack('>I4I4', marker, 17)
do
  -- A clock that is more than two seconds behind what was written down is not to be trusted.
  local ghi, glo = plus(nhi, nlo, 0, 2000000)
  if less(ghi, glo, mhi, mlo) then
    return {8, struct.pack('>I4I4', nhi, nlo), string.sub(marker, 17, 24)}
  end
  local fhi, flo = struct.unpack('>I4I4', ARGV[2])
  if less(nhi, nlo, fhi, flo) then nhi, nlo = fhi, flo end
end
local now = struct.pack('>I4I4', nhi, nlo)

-- S4: above the clock, every fence whose record is gone, and the key's last.
local function next_fence(lhi, llo)
  local hi, lo = plus(mhi, mlo, 0, 1)
  if less(hi, lo, nhi, nlo) then hi, lo = nhi, nlo end
  lhi, llo = plus(lhi, llo, 0, 1)
  if less(hi, lo, lhi, llo) then hi, lo = lhi, llo end
  return struct.pack('>I4I4', hi, lo)
end

-- Whether it is a record of this version, whose header may be read.
local function readable(value)
  return #value >= 52 and string.sub(value, 1, 3) == 'OW\1'
end

-- S11: over for every step, whether or not the server has removed it.
local function ended(value)
  if not readable(value) then return false end
  local hi, lo = struct.unpack('>I4I4', value, 37)
  return (hi ~= 0 or lo ~= 0) and not less(nhi, nlo, hi, lo)
end

-- Bit 5 of the flags: the body lies under a key of its own.
local function is_apart(value)
  return math.floor(string.byte(value, 6) / 32) % 2 == 1
end

local function as_it_is(value)
  if readable(value) and is_apart(value) then
    return {1, now, value, redis.call('GET', KEYS[4])}
  end
  return {1, now, value}
end

local function later(span)
  local hi, lo = struct.unpack('>I4I4', span)
  return struct.pack('>I4I4', plus(nhi, nlo, hi, lo))
end

-- S5: the holder's record at any revision, or exactly the one that was read.
local function is_meant(value, expect)
  if not readable(value) then return false end
  if #expect == 8 then
    return string.byte(value, 4) == 1 and string.sub(value, 13, 20) == expect
  end
  return string.sub(value, 13, 28) == expect
end

local function next_revision(value)
  local hi, lo = struct.unpack('>I4I4', value, 21)
  return struct.pack('>I4I4', plus(hi, lo, 0, 1))
end
