-- What the server says of its data, and what views it has. Stands alone. A replica says so.
-- KEYS the views
local info = redis.pcall('INFO', 'replication')
if type(info) ~= 'string' then return '5' end
local views = redis.call('MGET', unpack(KEYS))
for at = 1, #KEYS do
  if not views[at] or #views[at] ~= 49 then views[at] = '' end
end
views[#KEYS + 1] = info
return views
