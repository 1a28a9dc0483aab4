-- Whether the partition is in that view, and the session let in. After `server.lua`, where `view` is what is under KEYS 1:
-- number, tag, mark, the latest time of a grant, before: 8 bytes each; 1 where the view is warm, else 0; the horizon: 8 bytes.
if not view or #view ~= 49 or sub(view, 1, 16) ~= sub(said, 1, 16) or call('HGET', KEYS[2], sub(said, 17, 32)) ~= '1' then
  return '9'
end
