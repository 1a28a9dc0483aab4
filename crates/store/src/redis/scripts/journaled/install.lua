-- Gives the partition a view, unless it has one as high. Erased keys come first, then the view, and then those who may
-- claim: what stops half-way lets nobody in. With the view the server's clock begins anew; fences do not.
-- KEYS 4 and on the erased keys' records
-- ARGV 1 goes on with the mark and the horizon (8 each); 2 is the sessions, 16 bytes each; 3 and on the erased keys' rows
local view = call('GET', KEYS[1])
local mhi, mlo = unpack('>I4I4', said, 97)
if view and #view == 49 then
  local hhi, hlo = unpack('>I4I4', view)
  ahi, alo = unpack('>I4I4', said)
  if hhi > ahi or (hhi == ahi and hlo >= alo) then return sub(view, 1, 16) == sub(said, 1, 16) and '1' or '9' end
  hhi, hlo = unpack('>I4I4', view, 17)
  if hhi > mhi or (hhi == mhi and hlo > mlo) then mhi, mlo = hhi, hlo end
end
if nhi > mhi or (nhi == mhi and nlo > mlo) then mhi, mlo = nhi, nlo end
local before = pack('>I4I4', mhi, mlo)
for at = 4, #KEYS do
  local row, record = ARGV[at - 1], KEYS[at]
  local there = call('MGET', record)[1]
--MERGE
end
call('SET', KEYS[1], sub(said, 1, 16) .. pack('>I4I4I4I4', mhi, mlo, whi, wlo) .. before .. '0' .. sub(said, 105, 112))
call('DEL', KEYS[2])
for at = 1, #ARGV[2], 16 do call('HSET', KEYS[2], sub(ARGV[2], at, at + 15), '1') end
return '1'
