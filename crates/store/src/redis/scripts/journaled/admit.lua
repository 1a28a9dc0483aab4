-- Lets the session into the view, unless it was shut out.
local view = call('GET', KEYS[1])
if not view or #view ~= 49 or sub(view, 1, 16) ~= sub(said, 1, 16) then return '9' end
call('HSETNX', KEYS[2], sub(said, 17, 32), '1')
return call('HGET', KEYS[2], sub(said, 17, 32)) == '1' and '1' or '9'
