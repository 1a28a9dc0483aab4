-- What undoes an effect whose record is settled as failed: a function of this database, or a URL that a gateway calls.
--
-- It is registered by the holder, in the transaction of the effect, and runs where the record is: due once the record is
-- failed, dropped once it is completed, and nothing happens while the record is in flight or unknown. Of one record the
-- last that was registered runs first, and the one before it only once that is done.

create table onceward.compensation (
  record_id bytea not null check (octet_length(record_id) = 32),
  name text not null check (name <> '' and octet_length(name) <= 200),
  -- Rises with each registration of the record.
  seq bigint not null,
  -- Of the holder who registered it.
  fence bigint not null,
  kind text not null check (kind in ('sql', 'url')),
  -- The function as schema.name, or the URL.
  target text not null check (octet_length(target) <= 2048),
  payload jsonb not null,
  -- registered; due, or dropped; then done, or stuck until an operator says again or settled.
  state text not null default 'registered' check (state in ('registered', 'due', 'dropped', 'done', 'stuck', 'settled')),
  -- Runs that have begun.
  attempts int not null default 0,
  -- The next run is not before; of a call on its way, the end of its lease.
  not_before bigint not null default 0,
  attempted_at bigint not null default 0,
  -- Why the last run failed, or what the operator said.
  last_error text not null default '',
  registered_at bigint not null,
  done_at bigint not null default 0,
  primary key (record_id, name),
  unique (record_id, seq)
);
create index compensation_due on onceward.compensation (not_before) where state = 'due';
create index compensation_waiting on onceward.compensation (state, registered_at) where state in ('registered', 'due', 'stuck');

-- The functions that may be registered, and whose they were when they were allowed.
create table onceward.compensation_allowed (
  target text primary key,
  owner name not null
);

-- The function that a text names: with its schema, and of these arguments. Null where there is none.
create function onceward.compensation_function(target text) returns oid
language plpgsql stable
as $$
declare
  found_one oid;
begin
  if position('.' in target) > 0 then
    found_one := to_regprocedure(case when position('(' in target) > 0 then target else target || '(bytea, text, jsonb)' end)::oid;
  end if;
  return (select p.oid from pg_proc p where p.oid = found_one and p.prokind = 'f' and p.proargtypes::text = '17 25 3802');
exception when syntax_error or invalid_name or undefined_object or undefined_function or invalid_text_representation or name_too_long or feature_not_supported then
  return null;
end $$;

create function onceward.compensation_target(function_oid oid) returns text
language sql stable
as $$ select format('%I.%I', n.nspname, p.proname) from pg_proc p join pg_namespace n on n.oid = p.pronamespace where p.oid = function_oid $$;

-- Why a function is not to be run; null where it may be. It runs as its own owner, whoever calls it: nothing that an
-- application registers runs with the rights of the schema's owner, or of a gateway.
create function onceward.compensation_refusal(function_oid oid) returns text
language sql stable
as $$
  select case
    when function_oid is null or p.oid is null then 'there is no function of that name with the arguments (record_id bytea, key text, payload jsonb); name it with its schema'
    when not p.prosecdef then 'the function is not SECURITY DEFINER: it would run with the rights of whoever settles failures'
    when not exists (select from unnest(p.proconfig) c where c like 'search\_path=%') then 'the function does not set its search_path: alter function … set search_path = …'
    when not has_function_privilege(current_user, p.oid, 'execute') then format('%I may not execute the function: grant it', current_user)
  end
  from (select 1) one left join pg_proc p on p.oid = function_oid
$$;

-- Allows a function to be registered. For an operator; the function belongs to whoever is trusted to change it later.
create function onceward.allow_compensation(target text) returns text
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  function_oid constant oid := onceward.compensation_function(allow_compensation.target);
  refusal constant text := onceward.compensation_refusal(function_oid);
  canonical constant text := onceward.compensation_target(function_oid);
begin
  if refusal is not null then
    raise exception 'allow_compensation: %', refusal using errcode = '22023';
  end if;
  insert into onceward.compensation_allowed (target, owner) select canonical, pg_get_userbyid(p.proowner) from pg_proc p where p.oid = function_oid
  on conflict (target) do update set owner = excluded.owner;
  return canonical;
end $$;

-- Takes that back. What is registered already fails from then on, and is listed in the end.
create function onceward.disallow_compensation(target text) returns boolean
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp
as $$
begin
  delete from onceward.compensation_allowed a
  where a.target in (disallow_compensation.target, onceward.compensation_target(onceward.compensation_function(disallow_compensation.target)));
  return found;
end $$;

-- Why a function that was allowed is not any more; null where it is.
create function onceward.compensation_disallowed(function_oid oid) returns text
language sql stable
as $$
  select coalesce(onceward.compensation_refusal(function_oid), case
    when not exists (select from onceward.compensation_allowed a join pg_proc p on p.oid = function_oid
      where a.target = onceward.compensation_target(function_oid) and a.owner = pg_get_userbyid(p.proowner))
    then 'the function is not allowed, or has another owner since: an operator calls onceward.allow_compensation' end)
$$;

-- For the holder, in the transaction that makes an effect: what undoes it, should the record be settled as failed. target:
-- a function `schema.name`, which is called with (record_id bytea, key text, payload jsonb), or an http(s) URL, to which
-- the payload is sent. Returns true; false where it was registered before. The fence is checked as by assert_fence (ID001).
create function onceward.compensate_with(id bytea, fence bigint, name text, target text, payload jsonb default 'null')
returns boolean
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  function_oid oid;
  refusal text;
  canonical text := compensate_with.target;
  before onceward.compensation;
begin
  if coalesce(compensate_with.name, '') = '' or octet_length(compensate_with.name) > 200 then
    raise exception 'compensate_with: the name has 1 to 200 bytes' using errcode = '22023';
  elsif compensate_with.payload is null or octet_length(compensate_with.payload::text) > 65536 then
    raise exception 'compensate_with: the payload is JSON of at most 65536 bytes' using errcode = '22023';
  elsif coalesce(canonical, '') = '' or octet_length(canonical) > 2048 then
    raise exception 'compensate_with: the target has 1 to 2048 bytes' using errcode = '22023';
  elsif canonical ~ '^[A-Za-z][A-Za-z0-9+.-]*://' then
    -- No credentials, no fragment, and nothing by which a path leads elsewhere than it begins.
    if canonical !~ '^https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?(/[A-Za-z0-9._~!$&''()*+,;=:@%/-]*)?(\?[A-Za-z0-9._~!$&''()*+,;=:@%/?-]*)?$'
      or split_part(canonical, '?', 1) ~* '/\.\.?(/|$)|%2e|%2f|%5c' then
      raise exception 'compensate_with: that is no URL that is called' using errcode = '22023',
        hint = 'http:// or https://, a host, a path without dots as segments; no user, no fragment';
    end if;
  else
    function_oid := onceward.compensation_function(canonical);
    refusal := onceward.compensation_disallowed(function_oid);
    if refusal is null and not has_function_privilege(session_user, function_oid, 'execute') then
      refusal := format('%I, who registers it, may not execute it', session_user);
    end if;
    if refusal is not null then
      raise exception 'compensate_with: %', refusal using errcode = '22023';
    end if;
    canonical := onceward.compensation_target(function_oid);
  end if;

  perform onceward.assert_fence(compensate_with.id, compensate_with.fence);
  select c.* into before from onceward.compensation c where c.record_id = compensate_with.id and c.name = compensate_with.name for update;
  if before.state = 'registered' then
    return false;
  elsif before.state <> 'dropped' then
    raise exception 'compensate_with: % of this record is % already', quote_literal(compensate_with.name), before.state using errcode = '55000',
      hint = 'it is of an earlier execution, which failed: a second effect under the same key has another name';
  end if;
  -- A write to the record, so that whoever settles it on an older snapshot meets a conflict, and not no compensation.
  update onceward.record r set revision = r.revision + 1, written_at = onceward.time_of(r) where r.id = compensate_with.id;
  insert into onceward.compensation as c (record_id, name, seq, fence, kind, target, payload, registered_at)
  select compensate_with.id, compensate_with.name, coalesce(max(o.seq), 0) + 1, compensate_with.fence,
    case when function_oid is null then 'url' else 'sql' end, canonical, compensate_with.payload, onceward.now_us()
  from onceward.compensation o where o.record_id = compensate_with.id
  -- Dropped by an earlier execution, which was completed: it never ran.
  on conflict (record_id, name) do update set seq = excluded.seq, fence = excluded.fence, kind = excluded.kind, target = excluded.target,
    payload = excluded.payload, state = 'registered', registered_at = excluded.registered_at, done_at = 0;
  return true;
end $$;

-- What is registered is due with the failure of its record, and dropped with its completion, in the transaction that
-- settles it, whoever that is: what becomes of the record afterwards changes nothing.
create function onceward.compensation_decided() returns trigger
language plpgsql security definer set search_path = onceward, pg_catalog, pg_temp
as $$
begin
  update onceward.compensation c set
    state = case new.state when 4 then 'due' else 'dropped' end,
    not_before = onceward.now_us(),
    done_at = case new.state when 4 then 0 else onceward.now_us() end
  where c.record_id = new.id and c.state = 'registered';
  return null;
end $$;

create trigger compensation_decided after update of state on onceward.record
  for each row when (new.state in (3, 4) and old.state <> new.state) execute function onceward.compensation_decided();

-- The key that a compensation goes with: the same each time it is run.
create function onceward.compensation_key(id bytea, name text) returns text
language sql immutable
as $$ select onceward.child_key(onceward.record_text(id), 'compensate/' || name) $$;

-- The next one of a kind, locked; all null where none is due. Of URLs only those that are listed, or begin with one that is
-- listed with a slash at its end.
create function onceward.compensation_next(of_kind text, urls text[]) returns onceward.compensation
language plpgsql volatile
as $$
declare
  one onceward.compensation;
begin
  select c.* into one from onceward.compensation c
  where c.state = 'due' and c.not_before <= onceward.now_us() and c.kind = of_kind
    and (of_kind = 'sql' or exists (select from unnest(urls) u where c.target = u or right(u, 1) = '/' and starts_with(c.target, u)))
    -- Those that were registered later are undone first. A stuck one holds up those before it.
    and not exists (select from onceward.compensation d where d.record_id = c.record_id and d.seq > c.seq and d.state in ('due', 'stuck'))
  order by c.not_before limit 1 for update of c skip locked;
  return one;
end $$;

-- A run failed: again after a pause that doubles, or, after so many, stuck. For the functions of this schema.
create function onceward.compensation_failed(
  one onceward.compensation, runs int, said text, attempts_max int, pause interval, pause_max interval) returns text
language plpgsql volatile
as $$
#variable_conflict use_column
declare
  now_us constant bigint := onceward.now_us();
  wait_us constant bigint := least(onceward.micros(compensation_failed.pause)::numeric * 2::numeric ^ least(runs - 1, 40), onceward.micros(compensation_failed.pause_max))::bigint;
  is_stuck constant boolean := runs >= compensation_failed.attempts_max;
begin
  update onceward.compensation c set
    state = case when is_stuck then 'stuck' else 'due' end, attempts = runs, attempted_at = now_us, not_before = now_us + wait_us,
    last_error = left(said, 300)
  where c.record_id = (one).record_id and c.name = (one).name;
  return case when is_stuck then 'stuck' else 'failed' end;
end $$;

-- Runs one function that is due, in this transaction, together with the note that it is done. Returns done, failed or stuck,
-- null where none is due. What the function raises takes back what it did, and no more.
create function onceward.compensate(attempts_max int default 12, pause interval default '5 seconds', pause_max interval default '1 hour')
returns text
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set lock_timeout = '5s'
as $$
#variable_conflict use_column
declare
  one onceward.compensation := onceward.compensation_next('sql', null);
  function_oid oid;
  version xid;
  refusal text;
  said text;
  state text;
begin
  if one.record_id is null then
    return null;
  end if;
  begin
    function_oid := onceward.compensation_function(one.target);
    refusal := onceward.compensation_disallowed(function_oid);
    if refusal is not null then
      raise exception '%', refusal using errcode = '42501';
    end if;
    select p.xmin into version from pg_proc p where p.oid = function_oid;
    execute format('select %s($1, $2, $3)', one.target) using one.record_id, onceward.compensation_key(one.record_id, one.name), one.payload;
    -- What it deferred to the COMMIT would fail there, and nobody would count it.
    set constraints all immediate;
    if not exists (select from pg_proc p where p.oid = function_oid and p.xmin = version) then
      raise exception 'the function was changed while it ran' using errcode = '40001';
    end if;
  -- A statement_timeout counts as a failure, too, or one that hangs would be run for ever.
  exception when query_canceled or others then
    get stacked diagnostics said = message_text, state = returned_sqlstate;
    perform onceward.be_durable();
    return onceward.compensation_failed(one, one.attempts + 1, said || ' (SQLSTATE ' || state || ')', attempts_max, pause, pause_max);
  end;
  perform onceward.be_durable();
  update onceward.compensation c set state = 'done', attempts = c.attempts + 1, attempted_at = onceward.now_us(), done_at = onceward.now_us(), last_error = ''
  where c.record_id = one.record_id and c.name = one.name;
  return 'done';
end $$;

-- For a gateway: one call that is due becomes its own until the lease ends; whoever comes after then makes it again, under
-- the same key. One that was begun so often already is stuck. outcome: take, stuck.
create function onceward.compensation_take(urls text[], lease interval, attempts_max int)
returns table (outcome text, record_id bytea, name text, target text, key text, payload text, attempt int)
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  one onceward.compensation := onceward.compensation_next('url', urls);
  now_us constant bigint := onceward.now_us();
begin
  if one.record_id is null then
    return;
  end if;
  perform onceward.be_durable();
  if one.attempts >= compensation_take.attempts_max then
    update onceward.compensation c set state = 'stuck', last_error = coalesce(nullif(c.last_error, ''), 'nobody said how the last call ended')
    where c.record_id = one.record_id and c.name = one.name;
    return query select 'stuck', one.record_id, one.name, one.target, null::text, null::text, one.attempts;
    return;
  end if;
  update onceward.compensation c set attempts = c.attempts + 1, attempted_at = now_us, not_before = now_us + onceward.micros(compensation_take.lease)
  where c.record_id = one.record_id and c.name = one.name;
  return query select 'take', one.record_id, one.name, one.target, onceward.compensation_key(one.record_id, one.name), one.payload::text, one.attempts + 1;
end $$;

-- How that call ended: with a 2xx (`said` is null), or not. Returns done, failed, stuck, or late where somebody else has it.
create function onceward.compensation_told(
  id bytea, name text, attempt int, said text, attempts_max int, pause interval, pause_max interval) returns text
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
  one onceward.compensation;
  before text := onceward.bounded();
begin
  perform onceward.be_durable();
  select c.* into one from onceward.compensation c where c.record_id = id and c.name = compensation_told.name for update;
  perform set_config('lock_timeout', before, true);
  if one.state is null or one.state not in ('due', 'stuck') then
    return 'late';
  elsif compensation_told.said is null then
    -- Whoever made the call: the receiver has it.
    update onceward.compensation c set state = 'done', done_at = onceward.now_us(), last_error = ''
    where c.record_id = one.record_id and c.name = one.name;
    return 'done';
  elsif one.state <> 'due' or one.attempts is distinct from compensation_told.attempt then
    return 'late';
  end if;
  return onceward.compensation_failed(one, one.attempts, compensation_told.said, attempts_max, pause, pause_max);
end $$;

-- The compensations in a state, the oldest first: stuck, due, registered, or held, which are registered for a record that is
-- neither in flight nor unknown, so that nobody else will decide. Without their payloads.
create function onceward.compensations(of_state text default 'stuck', rows_max int default 100)
returns table (record text, name text, seq bigint, kind text, target text, state text, attempts int, not_before timestamptz, last_error text, registered_at timestamptz)
language plpgsql stable security definer set search_path = onceward, pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
  if of_state is null or of_state not in ('registered', 'held', 'due', 'stuck') then
    raise exception 'compensations: there is no state %', quote_nullable(of_state) using errcode = '22023', hint = 'the states are registered, held, due and stuck';
  end if;
  return query select onceward.record_text(c.record_id), c.name, c.seq, c.kind, c.target, of_state, c.attempts, onceward.at(c.not_before), c.last_error, onceward.at(c.registered_at)
  from onceward.compensation c
  where c.state = case of_state when 'held' then 'registered' else of_state end
    and (of_state <> 'held' or not exists (select from onceward.record r where r.id = c.record_id and r.state = 1))
  order by c.registered_at limit least(greatest(rows_max, 0), 1000);
end $$;

-- A stuck or held one, locked, for an operator's word on it.
create function onceward.compensation_answerable(id bytea, name text, verb text) returns onceward.compensation
language plpgsql volatile
as $$
declare
  one onceward.compensation;
  before text := onceward.bounded();
begin
  select c.* into one from onceward.compensation c where c.record_id = id and c.name = compensation_answerable.name for update;
  perform set_config('lock_timeout', before, true);
  if one.record_id is null then
    raise exception '%: there is no compensation % of that record', verb, quote_literal(name) using errcode = '22023', hint = 'see onceward.compensations(''stuck'')';
  elsif one.state = 'stuck' or one.state = 'registered' and not exists (select from onceward.record r where r.id = one.record_id and r.state = 1) then
    perform onceward.be_durable();
    return one;
  end if;
  raise exception '%: it is %', verb, one.state using errcode = '55000', hint = 'an operator decides about those that are stuck, or held';
end $$;

-- An operator's word: run it again, from the first attempt on.
create function onceward.compensation_again(id bytea, name text) returns void
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp
as $$
declare
  one onceward.compensation := onceward.compensation_answerable(compensation_again.id, compensation_again.name, 'compensation_again');
begin
  update onceward.compensation c set state = 'due', attempts = 0, not_before = onceward.now_us()
  where c.record_id = one.record_id and c.name = one.name;
end $$;

-- An operator's word: it was done by hand, or is not to be done. Those before it go on.
create function onceward.compensation_settled(id bytea, name text, reason text) returns void
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp
as $$
declare
  one onceward.compensation := onceward.compensation_answerable(compensation_settled.id, compensation_settled.name, 'compensation_settled');
begin
  update onceward.compensation c set state = 'settled', done_at = onceward.now_us(), last_error = left(coalesce(compensation_settled.reason, ''), 300)
  where c.record_id = one.record_id and c.name = one.name;
end $$;

revoke all on function
  onceward.compensation_function, onceward.compensation_target, onceward.compensation_refusal, onceward.allow_compensation,
  onceward.disallow_compensation, onceward.compensation_disallowed, onceward.compensate_with, onceward.compensation_decided,
  onceward.compensation_key, onceward.compensation_next, onceward.compensation_failed, onceward.compensate, onceward.compensation_take,
  onceward.compensation_told, onceward.compensations, onceward.compensation_answerable, onceward.compensation_again, onceward.compensation_settled
from public;
select onceward.grant_roles();
