-- What is done about a key by somebody who does not hold it.

-- Settles an unknown outcome. verdict: executed (with its answer), not_executed (the next claim runs), failed. The fence is
-- the one that was looked at; the holder, should it still live, loses its right. Returns the new fence.
create function onceward.resolve(
  id bytea, fence bigint, verdict text, status int default null, headers jsonb default '[]', body bytea default '',
  reason text default '', keep interval default '1 day', trailers jsonb default '[]')
returns bigint
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
declare
  keep_us constant bigint := onceward.micros(resolve.keep);
  bare constant boolean := resolve.status is null;
  there onceward.record;
  now_us bigint;
  next_fence bigint;
begin
  if resolve.verdict is null or resolve.verdict not in ('executed', 'not_executed', 'failed') then
    raise exception 'resolve: there is no verdict %', quote_nullable(resolve.verdict) using errcode = '22023', hint = 'the verdicts are executed, not_executed and failed';
  elsif resolve.verdict = 'executed' and bare or resolve.verdict = 'not_executed' and not bare or resolve.status not between 100 and 999 then
    raise exception 'resolve: executed needs a status of 100 to 999, not_executed has none, failed may have one' using errcode = '22023';
  end if;
  there := onceward.locked(resolve.id);
  if there.id is null then
    perform onceward.lost(there, resolve.fence, 'resolve');
  elsif there.fence is distinct from resolve.fence then
    raise exception 'resolve: the fence is %, not %', there.fence, resolve.fence using errcode = 'ID001', detail = 'stale_fence', hint = 'look again with onceward.get';
  end if;
  now_us := onceward.time_of(there);
  if there.state <> 1 or there.lease_until > now_us or there.lease_until = 1 then
    raise exception 'resolve: the outcome is not unknown, the record is %', onceward.seen(there, now_us) using errcode = '55000', detail = 'not_unknown';
  end if;
  next_fence := onceward.next_fence(there.id, now_us, there.fence);
  if resolve.verdict = 'not_executed' then
    update onceward.record r set
      fence = next_fence, revision = r.revision + 1, lease_until = 0, keep_until = now_us + keep_us, written_at = now_us,
      state = 2, ambiguous = false, settled_at = now_us, not_before = 0, reason = coalesce(resolve.reason, ''),
      status = null, headers = null, body = null, trailers = null, body_not_kept = false, body_until = 0
    where r.id = resolve.id;
  else
    perform onceward.settle(there, now_us, next_fence, case resolve.verdict when 'executed' then 3 else 4 end::smallint, resolve.status,
      case when not bare then onceward.packed(resolve.headers) end, case when not bare then coalesce(resolve.body, '') end,
      case when not bare then onceward.packed(resolve.trailers) end, keep_us, coalesce(resolve.reason, ''));
  end if;
  return next_fence;
end $$;

-- Forgets a key. how 'erase': what was recorded goes, the key stays unusable for `keep`; also where there is no record.
-- how 'reuse': the key is new again. A key that is in flight or unknown only with `force`, and only by erasing.
-- Returns erased, freed, or absent.
create function onceward.forget(
  id bytea, how text default 'erase', force boolean default false, reason text default '', keep interval default '1 day')
returns text
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  keep_us constant bigint := onceward.micros(forget.keep);
  there onceward.record;
  place onceward.record;
  is_forced boolean := coalesce(forget.force, false);
  now_us bigint;
begin
  if octet_length(forget.id) is distinct from 32 then
    raise exception 'forget: the id has 32 bytes' using errcode = '22023';
  elsif forget.how is null or forget.how not in ('erase', 'reuse') then
    raise exception 'forget: there is no way %', quote_nullable(forget.how) using errcode = '22023', hint = 'the ways are erase and reuse';
  end if;
  for round in 1 .. 100 loop
    there := onceward.locked(forget.id);
    if there.id is not null then
      now_us := onceward.time_of(there);
      if there.state = 1 and not is_forced then
        raise exception 'forget: the key is in flight or its outcome unknown' using errcode = '55006', detail = 'busy', hint = 'resolve it first, or erase it with force';
      elsif there.state = 1 and forget.how = 'reuse' then
        raise exception 'forget: a key in flight can be erased, not freed for reuse' using errcode = '55006', detail = 'reuse_in_flight', hint = 'a late answer would bring it back';
      elsif forget.how = 'reuse' then
        perform onceward.removed(there);
        return 'freed';
      end if;
      update onceward.record r set
        fence = onceward.next_fence(r.id, now_us, r.fence), revision = r.revision + 1, lease_until = 0, keep_until = now_us + keep_us, written_at = now_us,
        state = 5, ambiguous = false, fingerprint = decode(repeat('00', 32), 'hex'), fields = '', principal_proof = null,
        settled_at = now_us, reason = coalesce(forget.reason, ''),
        status = null, headers = null, body = null, trailers = null, body_not_kept = false, body_until = 0,
        checkpoint_seq = null, checkpoint_name = null, checkpoint_data = null
      where r.id = forget.id;
      return 'erased';
    elsif forget.how = 'reuse' then
      return 'absent';
    end if;
    -- No record, or one that has ended: the key is erased all the same, so that no late answer brings it back. A place is
    -- held, as an operator of a gateway does, and then erased.
    place := row(
      forget.id, 0, 1, 0, 0, 0, 1, false, false, 0, decode(repeat('00', 16), 'hex'), decode(repeat('00', 16), 'hex'),
      null, 4294967295, decode(repeat('00', 32), 'hex'), '', '', '', '', 0, 0, 0, '',
      null, null, null, null, false, 0, null, null, null);
    select r.* into there from onceward.record r where r.id = forget.id for update;
    if found then
      now_us := onceward.time_of(there);
      continue when there.keep_until = 0 or there.keep_until > now_us;
      place.fence := onceward.next_fence(forget.id, now_us, there.fence);
      place.written_at := now_us;
      delete from onceward.record r where r.id = forget.id;
      insert into onceward.record select (place).*;
    else
      place := onceward.inserted(place, 0);
    end if;
    is_forced := is_forced or place.id is not null;
  end loop;
  raise exception 'forget: the key came and went a hundred times' using errcode = '40001', hint = 'try again';
end $$;

-- The state as people see it: in_flight, unknown, not_executed, completed, failed, erased.
create function onceward.seen(there onceward.record, now_us bigint) returns text
language sql immutable
as $$
  select case (there).state
    when 1 then case
      when (there).lease_until <= now_us and (there).lease_until <> 1 and ((there).dispatched or (there).ambiguous) then 'unknown'
      else 'in_flight' end
    when 2 then 'not_executed' when 3 then 'completed' when 4 then 'failed' when 5 then 'erased' end
$$;

-- What is recorded of a key; no row where there is none. Changes nothing.
create function onceward.get(id bytea)
returns table (
  state text, fence bigint, revision bigint, attempt bigint, ambiguous boolean, written_at timestamptz, lease_until timestamptz,
  keep_until timestamptz, not_before timestamptz, route text, tenant text, env text, reason text,
  status int, headers jsonb, body bytea, trailers jsonb, body_not_kept boolean,
  checkpoint_seq bigint, checkpoint_name text, checkpoint_data bytea)
language sql stable security definer set search_path = onceward, pg_catalog, pg_temp
as $$
  select onceward.seen(r, n.now_us), r.fence, r.revision, r.attempt, r.ambiguous, onceward.at(r.written_at), onceward.at(r.lease_until),
    onceward.at(r.keep_until), onceward.at(r.not_before), r.route, r.tenant, r.env, r.reason,
    r.status::int, case when r.status is not null then onceward.unpacked(r.headers) end,
    case when r.status is not null and not n.is_bare then coalesce(r.body, '') end,
    case when r.status is not null and not n.is_bare then onceward.unpacked(r.trailers) end,
    r.status is not null and n.is_bare,
    r.checkpoint_seq, r.checkpoint_name, r.checkpoint_data
  from onceward.record r,
    lateral (select onceward.time_of(r) as now_us, r.body_not_kept or (r.body_until <> 0 and r.body_until <= onceward.time_of(r)) as is_bare) n
  where r.id = get.id and (r.keep_until = 0 or r.keep_until > n.now_us)
$$;
