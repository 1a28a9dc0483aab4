-- What is there, for a step. Written out, without functions, as in `../begin.lua`.
-- KEYS 1 the view, 2 the sessions, 3 the ids that may not be in the journal, 4 the record
local both = call('MGET', KEYS[1], KEYS[4])
local view, there = both[1], both[2]
