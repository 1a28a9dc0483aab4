-- Whether the process is the one that does something for all: from now on for `span` microseconds, and longer where it
-- asks again before that is over. The value: until when, and whose it is.
create function onceward.store_keep_turn(w_name text, process text, span bigint) returns boolean
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp
as $$
declare
  now_us constant bigint := onceward.now_us();
begin
  insert into onceward.meta as m (name, value) values ('turn of ' || w_name, format('%s %s', now_us + span, process))
  on conflict (name) do update set value = excluded.value
  where split_part(m.value, ' ', 2) = process
    -- One that is further away than any turn lasts was taken by a clock that was set back since.
    or split_part(m.value, ' ', 1)::bigint <= now_us or split_part(m.value, ' ', 1)::bigint > now_us + span;
  return found;
end $$;

revoke all on function onceward.store_keep_turn from public;
select onceward.grant_roles();
