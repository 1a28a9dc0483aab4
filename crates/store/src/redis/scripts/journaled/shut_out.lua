-- Shuts another session out of the view, whether or not it was let in.
-- ARGV 2 the session
call('HSET', KEYS[2], ARGV[2], '0')
return '1'
