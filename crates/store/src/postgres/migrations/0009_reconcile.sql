-- Records and effects compared: what is written down, read many at a time, and what is old enough to go.

-- For `prune_effects`: each record that has effects once, by when the first was made.
create index effect_first on onceward.effect (written_at) where name = '';

-- What is written down of each record, in the order given: whether the effect was made, and the largest fence that was seen
-- here; null where there is nothing. Changes nothing, and holds nobody up.
create function onceward.noted(ids bytea[], name text) returns table (made boolean, fence bigint)
language sql stable security definer set search_path = onceward, pg_catalog, pg_temp
as $$
  select exists (select from onceward.effect e where e.record_id = i.id and e.name = noted.name),
    (select max(e.fence) from onceward.effect e where e.record_id = i.id)
  from unnest(noted.ids) with ordinality i (id, at) order by i.at
$$;

-- Takes what is written down of at most `batch` records, and as many settled compensations: nothing of it newer than
-- `older`, and of no record that is still in this database. Where records are kept elsewhere, nobody here can tell: then
-- `older` has to be longer than any of them lives. Returns how many records and compensations went; repeat until it is 0.
create function onceward.prune_effects(older interval default '90 days', batch int default 1000) returns bigint
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  until_us constant bigint := onceward.now_us() - onceward.micros(older);
  rows_max constant int := least(greatest(coalesce(batch, 0), 0), 10000);
  ids bytea[];
  gone bigint;
begin
  if older < interval '1 day' then
    raise exception 'prune_effects: what is newer than a day stays' using errcode = '22023', hint = 'a key that is retried meets its effect; take longer than the longest retention and unknown_max';
  end if;
  -- A fence is a time, or above one: that of the last holder counts, whenever the first came.
  ids := array(select e.record_id from onceward.effect e
    where e.name = '' and e.written_at < until_us and e.fence < until_us
      and not exists (select from onceward.effect o where o.record_id = e.record_id and o.written_at >= until_us)
      and not exists (select from onceward.record r where r.id = e.record_id)
      and not exists (select from onceward.compensation c where c.record_id = e.record_id and c.state in ('registered', 'due', 'stuck'))
    order by e.written_at limit rows_max for update skip locked);
  delete from onceward.effect e where e.record_id = any (ids);
  gone := cardinality(ids);
  with old as (
    select c.record_id, c.name from onceward.compensation c
    where c.state in ('done', 'dropped', 'settled') and c.done_at < until_us
      and not exists (select from onceward.record r where r.id = c.record_id)
    limit rows_max for update skip locked),
  went as (delete from onceward.compensation c using old where c.record_id = old.record_id and c.name = old.name returning 1)
  select gone + count(*) into gone from went;
  return gone;
end $$;

-- Whether it is the caller's turn to do something that one process does for all: then nobody else's for so long.
create function onceward.store_turn(w_name text, span bigint) returns boolean
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp
as $$
declare
  now_us constant bigint := onceward.now_us();
begin
  insert into onceward.meta as m (name, value) values ('turn ' || w_name, (now_us + span)::text)
  on conflict (name) do update set value = excluded.value
  -- One that is further away than any turn lasts was taken by a clock that was set back since.
  where m.value::bigint <= now_us or m.value::bigint > now_us + span;
  return found;
end $$;

-- How many compensations are in each state that somebody has to do something about.
create function onceward.compensation_counts(out due bigint, out stuck bigint, out held bigint)
language sql stable security definer set search_path = onceward, pg_catalog, pg_temp
as $$
  select count(*) filter (where c.state = 'due'), count(*) filter (where c.state = 'stuck'),
    count(*) filter (where c.state = 'registered' and not exists (select from onceward.record r where r.id = c.record_id and r.state = 1))
  from onceward.compensation c where c.state in ('registered', 'due', 'stuck')
$$;

revoke all on function onceward.noted, onceward.prune_effects, onceward.store_turn, onceward.compensation_counts from public;
select onceward.grant_roles();
