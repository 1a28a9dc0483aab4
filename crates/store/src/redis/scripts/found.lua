-- The record as it is: after `begin.lua`, where the step does not apply. Bit 5 of the flags: its body lies apart.
if not there and call('EXISTS', KEYS[2]) == 1 then return '7' .. now end
if not there or ended then return '2' .. now end
if readable and string.byte(there, 6) % 64 >= 32 then return {'1' .. now, there, call('GET', KEYS[2] .. ':b')} end
return {'1' .. now, there}
