-- Merges rows of the journal, unless the view is warm: then all that they say is here, and what says less may be gone.
-- KEYS 4 and on the records
-- ARGV 2 and on their rows
if sub(view, 41, 41) == '1' then return '1' end
local mhi, mlo = unpack('>I4I4', view, 17)
local before = sub(view, 33, 40)
for at = 4, #KEYS do
  local row, record = ARGV[at - 2], KEYS[at]
  local there = call('MGET', record)[1]
--MERGE
end
call('SETRANGE', KEYS[1], 16, pack('>I4I4', mhi, mlo))
return '1'
