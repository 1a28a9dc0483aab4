-- Whether this is the server that the caller names: a primary, with that data. A replica has its primary's replication id,
-- and one that was promoted has another. Where INFO is forbidden nothing is known, and nothing is done.
-- ARGV 1 begins with the view's number and tag (16 bytes), the session (16), the latest time that the process was told (8)
-- and the line of INFO that names the data (56).
local call, sub, byte, pack, unpack, said = redis.call, string.sub, string.byte, struct.pack, struct.unpack, ARGV[1]
local info = redis.pcall('INFO', 'replication')
if type(info) ~= 'string' then return '5' end
if not string.find(info, '\nrole:master\r', 1, true) or not string.find(info, sub(said, 41, 96), 1, true) then
  return '9'
end
