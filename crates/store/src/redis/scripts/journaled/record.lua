-- A clock that is more than two seconds behind a grant of this view is not to be trusted.
local chi, clo = unpack('>I4I4', view, 25)
if (chi - whi) * 4294967296 + clo - wlo > 2000000 then return '8' .. pack('>I4I4', whi, wlo) .. sub(view, 25, 32) end
if chi > whi or (chi == whi and clo > wlo) then whi, wlo = chi, clo end
local mhi, mlo = unpack('>I4I4', view, 17)

-- Whether it is a record that may be read, and whether its end has come (S11).
local readable, ended = false, false
if there and #there >= 60 and sub(there, 1, 2) == 'J\1' and sub(there, 9, 11) == 'OW\1' then
  readable = true
  ahi, alo = unpack('>I4I4', there, 45)
  ended = (ahi > 0 or alo > 0) and (ahi < nhi or (ahi == nhi and alo <= nlo))
end

-- Whether it is open and not above the horizon: then it may be over since long (A10), and the journal's row decides.
local is_old = false
if readable and byte(there, 3) <= 2 then
  local hhi, hlo = unpack('>I4I4', view, 42)
  ahi, alo = unpack('>I4I4', there, 21)
  is_old = ahi < hhi or (ahi == hhi and alo <= hlo)
end
