-- In a view that is not warm the journal's row decides with it: a step that needs it and has none says so, and one that is
-- given is merged first (A1).
-- ARGV 2 the row: '-' where none is given, '' where the journal has none
if is_old or sub(view, 41, 41) ~= '1' then
  local row, record = ARGV[2], KEYS[4]
  if row == '-' then
    if is_old then return '4' end
--NEEDED
  elseif row ~= '' then
    local before = sub(view, 33, 40)
--MERGE
    if raised then call('SETRANGE', KEYS[1], 16, pack('>I4I4', mhi, mlo)) end
    if changed then
      readable = true
      ahi, alo = unpack('>I4I4', there, 45)
      ended = (ahi > 0 or alo > 0) and (ahi < nhi or (ahi == nhi and alo <= nlo))
    end
  elseif is_old then
    ended = true
  end
end
