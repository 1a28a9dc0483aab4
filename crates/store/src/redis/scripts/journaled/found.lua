-- The record as it is, where the step does not apply.
if not there and call('EXISTS', KEYS[4]) == 1 then return '7' .. now end
if not there or ended then return '2' .. now end
return {'1' .. now, there}
