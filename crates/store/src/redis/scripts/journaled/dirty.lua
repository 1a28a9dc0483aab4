-- A page of the records that may not be in the journal. What is in the set from the first page to the last is on one of
-- them, also while others write (SSCAN), and may be on several.
-- ARGV 2 where to go on, 3 about how many
-- Returns where to go on, up to which fence claims are of earlier views, then id and record by turns.
local page = call('SSCAN', KEYS[3], ARGV[2], 'COUNT', ARGV[3])
local found = {page[1], sub(view, 33, 40)}
for at = 1, #page[2] do
  local id = page[2][at]
  -- In the slot of the keys that are named.
  local there = call('MGET', sub(KEYS[1], 1, 16) .. id .. ':j')[1]
  if there then
    found[#found + 1] = id
    found[#found + 1] = there
  end
end
return found
