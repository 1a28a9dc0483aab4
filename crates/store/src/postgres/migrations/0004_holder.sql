-- What the holder of a claim writes. Each of them names its fence, locks the record until the transaction ends, and raises
-- where somebody else has the key by now: ID003 with the detail absent, fenced or conflict, ID004 where it was erased.

-- Writes what a record became when it was settled: state, outcome, end. For the functions of this schema.
create function onceward.settle(
  there onceward.record, now_us bigint, fence bigint, state smallint, status int, headers bytea, body bytea, trailers bytea,
  keep_us bigint, reason text)
returns void
language plpgsql volatile
as $$
#variable_conflict use_column
begin
  update onceward.record r set
    fence = settle.fence, revision = r.revision + 1, lease_until = 0, keep_until = now_us + keep_us, written_at = now_us,
    state = settle.state, ambiguous = false, settled_at = now_us,
    status = settle.status, headers = settle.headers, body = settle.body, trailers = settle.trailers,
    body_not_kept = false, body_until = 0, checkpoint_seq = null, checkpoint_name = null, checkpoint_data = null,
    reason = settle.reason
  where r.id = (there).id;
end $$;

-- The record that is held under this fence, locked.
create function onceward.held_by(id bytea, fence bigint, verb text) returns onceward.record
language plpgsql volatile
as $$
declare
  there onceward.record := onceward.locked(held_by.id);
begin
  if there.state is distinct from 1 or there.fence is distinct from held_by.fence then
    perform onceward.lost(there, held_by.fence, held_by.verb);
  end if;
  return there;
end $$;

-- The holder cannot say what happened: unknown from now on.
create function onceward.doubted(there onceward.record, now_us bigint) returns void
language plpgsql volatile
as $$
#variable_conflict use_column
begin
  update onceward.record r set
    revision = r.revision + 1, lease_until = 0, keep_until = 0, written_at = now_us, ambiguous = true
  where r.id = (there).id;
end $$;

create function onceward.settle_held(
  id bytea, fence bigint, state smallint, status int, headers jsonb, body bytea, trailers jsonb, keep interval, verb text)
returns text
language plpgsql volatile
as $$
declare
  keep_us constant bigint := onceward.micros(settle_held.keep);
  bare constant boolean := settle_held.status is null;
  packed_headers constant bytea := case when not bare then onceward.packed(settle_held.headers) end;
  packed_trailers constant bytea := case when not bare then onceward.packed(settle_held.trailers) end;
  held_body constant bytea := case when not bare then coalesce(settle_held.body, '') end;
  there onceward.record := onceward.locked(settle_held.id);
  now_us bigint;
begin
  if there.state = 1 and there.fence = settle_held.fence then
    now_us := onceward.time_of(there);
    perform onceward.settle(there, now_us, there.fence, settle_held.state, settle_held.status, packed_headers, held_body, packed_trailers, keep_us, there.reason);
    perform onceward.hold(there.id, there.fence);
    return case settle_held.state when 3 then 'completed' else 'failed' end;
  elsif there.state = settle_held.state and there.fence = settle_held.fence and there.status is not distinct from settle_held.status::smallint
    and (bare or coalesce(there.headers, '') = packed_headers and not there.body_not_kept
      and coalesce(there.body, '') = held_body and coalesce(there.trailers, '') = packed_trailers) then
    -- The same was written before, and its answer was lost.
    return 'already';
  end if;
  perform onceward.lost(there, settle_held.fence, settle_held.verb);
end $$;

-- The holder's answer becomes the key's; it is replayed for `keep`. Returns completed, or already where the very same
-- answer was recorded before. The lease may be over, as long as nobody else was granted the key.
create function onceward.complete(
  id bytea, fence bigint, status int, headers jsonb default '[]', body bytea default '', keep interval default '1 day',
  trailers jsonb default '[]')
returns text
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
begin
  if complete.status is null or complete.status not between 100 and 999 then
    raise exception 'complete: the status is a number of 100 to 999, not %', coalesce(complete.status::text, 'null') using errcode = '22023';
  end if;
  return onceward.settle_held(complete.id, complete.fence, 3::smallint, complete.status, complete.headers, complete.body, complete.trailers, complete.keep, 'complete');
end $$;

-- The holder failed. kind 'final': for good; what there is of an answer is replayed. kind 'retryable': nothing was done, and
-- the next claim is granted after `retry_after`; where an earlier attempt may have done something, the outcome becomes
-- unknown instead. Returns failed, not_executed, unknown, or already.
create function onceward.fail(
  id bytea, fence bigint, kind text default 'final', status int default null, headers jsonb default '[]', body bytea default '',
  keep interval default '1 day', retry_after interval default '0', trailers jsonb default '[]')
returns text
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
declare
  keep_us constant bigint := onceward.micros(fail.keep);
  after_us constant bigint := onceward.micros(fail.retry_after);
  there onceward.record;
  now_us bigint;
begin
  if fail.kind = 'final' then
    if fail.status not between 100 and 999 then
      raise exception 'fail: the status is a number of 100 to 999, or null for none' using errcode = '22023';
    end if;
    return onceward.settle_held(fail.id, fail.fence, 4::smallint, fail.status, fail.headers, fail.body, fail.trailers, fail.keep, 'fail');
  elsif fail.kind is distinct from 'retryable' then
    raise exception 'fail: there is no kind %', quote_nullable(fail.kind) using errcode = '22023', hint = 'the kinds are final and retryable';
  end if;
  there := onceward.locked(fail.id);
  if there.state = 2 and there.fence = fail.fence then
    return 'already';
  elsif there.state is distinct from 1 or there.fence is distinct from fail.fence then
    perform onceward.lost(there, fail.fence, 'fail');
  end if;
  now_us := onceward.time_of(there);
  if there.ambiguous then
    perform onceward.doubted(there, now_us);
    return 'unknown';
  end if;
  update onceward.record r set
    revision = r.revision + 1, lease_until = 0, keep_until = now_us + keep_us, written_at = now_us,
    state = 2, not_before = now_us + after_us, settled_at = now_us
  where r.id = fail.id;
  return 'not_executed';
end $$;

-- The holder did nothing: the key is new again. Where an earlier attempt may have done something, the outcome becomes
-- unknown instead. Returns released, unknown, or absent where there is no claim.
create function onceward.release(id bytea, fence bigint) returns text
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
declare
  there onceward.record := onceward.locked(release.id);
begin
  if there.id is null then
    return 'absent';
  elsif there.state is distinct from 1 or there.fence is distinct from release.fence then
    perform onceward.lost(there, release.fence, 'release');
  elsif there.ambiguous then
    perform onceward.doubted(there, onceward.time_of(there));
    return 'unknown';
  end if;
  perform onceward.removed(there);
  return 'released';
end $$;

-- Takes a record away; whatever comes after has a larger fence. For the functions of this schema.
create function onceward.removed(there onceward.record) returns void
language plpgsql volatile
as $$
#variable_conflict use_column
begin
  delete from onceward.record r where r.id = (there).id;
  insert into onceward.mark as m (partition, fence) values (get_byte((there).id, 0), (there).fence)
  on conflict (partition) do update set fence = greatest(m.fence, excluded.fence);
end $$;

-- Renews the lease to `lease` from now, and never shortens it. Returns its end.
create function onceward.renew(id bytea, fence bigint, lease interval default '10 seconds') returns timestamptz
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
declare
  lease_us constant bigint := onceward.micros(renew.lease);
  there onceward.record := onceward.held_by(renew.id, renew.fence, 'renew');
  now_us bigint;
begin
  now_us := onceward.time_of(there);
  update onceward.record r set
    revision = r.revision + 1, written_at = now_us,
    -- A claim that ends with its transaction has no lease to renew.
    lease_until = case when r.lease_until = 1 then 1 else greatest(r.lease_until, now_us + lease_us) end
  where r.id = renew.id returning r.lease_until into there.lease_until;
  perform onceward.hold(there.id, there.fence);
  return onceward.at(there.lease_until);
end $$;

-- A recovery point: the next attempt is granted with it. seq is 1 for the first and rises by one; data has at most 65536
-- bytes. Returns stored, or already where the very same one is there.
create function onceward.checkpoint(id bytea, fence bigint, seq bigint, name text, data bytea default '') returns text
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
declare
  there onceward.record := onceward.held_by(checkpoint.id, checkpoint.fence, 'checkpoint');
  last bigint;
begin
  if checkpoint.seq is null or checkpoint.name is null or checkpoint.data is null then
    raise exception 'checkpoint: seq, name and data may not be null' using errcode = '22004';
  elsif octet_length(checkpoint.data) > 65536 then
    raise exception 'checkpoint: it carries at most 65536 bytes, not %', octet_length(checkpoint.data) using errcode = '22023', detail = 'size';
  end if;
  last := coalesce(there.checkpoint_seq, 0);
  if checkpoint.seq = last and there.checkpoint_name = checkpoint.name and there.checkpoint_data = checkpoint.data then
    perform onceward.hold(there.id, there.fence);
    return 'already';
  elsif checkpoint.seq = last then
    raise exception 'checkpoint: % was stored with other content', last using errcode = '22023', detail = 'conflict';
  elsif checkpoint.seq <> last + 1 then
    raise exception 'checkpoint: % does not follow %', checkpoint.seq, last using errcode = '22023', detail = 'order';
  end if;
  update onceward.record r set
    revision = r.revision + 1, keep_until = 0, written_at = onceward.time_of(there),
    checkpoint_seq = checkpoint.seq, checkpoint_name = checkpoint.name, checkpoint_data = checkpoint.data
  where r.id = checkpoint.id;
  perform onceward.hold(there.id, there.fence);
  return 'stored';
end $$;

-- Says before a call that nobody can repeat safely: from here on a crash leaves the outcome unknown.
create function onceward.dispatched(id bytea, fence bigint) returns void
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
declare
  there onceward.record := onceward.held_by(dispatched.id, dispatched.fence, 'dispatched');
begin
  update onceward.record r set
    revision = r.revision + 1, keep_until = 0, written_at = onceward.time_of(there), dispatched = true
  where r.id = dispatched.id;
end $$;
