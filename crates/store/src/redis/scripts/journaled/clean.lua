-- These are in the journal for good. Of what has not been written since, what is settled ends as its retention does, and
-- what was released goes, once the view is warm: before, a row that was read earlier could bring its claim back (A9).
-- KEYS 4 and on the records
-- ARGV 2 fence and revision of each as it was shipped, 16 bytes
local is_warm = sub(view, 41, 41) == '1'
for at = 4, #KEYS do
  local record = KEYS[at]
  local there, id = redis.pcall('GETRANGE', record, 0, 59), sub(record, 17, 59)
  if there == '' then
    call('SREM', KEYS[3], id)
  elseif type(there) == 'string' and sub(there, 1, 2) == 'J\1' and
    sub(there, 21, 36) == sub(ARGV[2], (at - 4) * 16 + 1, (at - 3) * 16) then
    local is_released = byte(there, 4) >= 4
    ahi, alo = unpack('>I4I4', there, 45)
    if byte(there, 3) > 1 and (ahi > 0 or alo > 0) then
      -- By the server's own clock, on which it is removed: a process that was told a later time ends nothing early.
      local left = ((ahi - whi) * 4294967296 + alo - wlo) / 1000
      if left < 0 then left = 0 end
      left = left + 10000
      if left > 3162240000000 then left = 3162240000000 end
      call('PEXPIRE', record, string.format('%.0f', left))
    end
    if not is_released then
      call('SREM', KEYS[3], id)
    elseif is_warm then
      call('DEL', record)
      call('SREM', KEYS[3], id)
    end
  end
end
return '1'
