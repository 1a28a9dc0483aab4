-- What ties the business tables of this database to a record, wherever the record itself is kept.

-- For a holder's own transaction: refuses it (ID001) unless the claim is held under this fence, and keeps it held until the
-- transaction ends, so that nobody takes over between this check and the commit.
create function onceward.assert_fence(id bytea, fence bigint) returns void
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
declare
  there onceward.record := onceward.locked(assert_fence.id);
begin
  if there.state is distinct from 1 or there.fence is distinct from assert_fence.fence then
    raise exception 'the claim is no longer held under fence %', assert_fence.fence using errcode = 'ID001', detail = 'stale_fence',
      hint = 'roll back: somebody else has the key, or it is settled';
  end if;
  perform onceward.hold(there.id, there.fence);
end $$;

-- For the transaction that makes an effect: true where it is the first of that name under the record, false where it was
-- made before (then do nothing, and answer from what is there). Refuses (ID001) a fence smaller than one that was seen:
-- that of the record, where it is in this database, of an earlier effect, or of probe_effect. With a status, the answer is
-- written down with it: whoever finds the effect repeats that one.
create function onceward.effect(
  id bytea, fence bigint, name text default 'done', status int default null, headers jsonb default '[]', body bytea default '')
returns boolean
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  newest bigint;
  is_first boolean;
  before text;
begin
  if octet_length(effect.id) is distinct from 32 or effect.fence is null or coalesce(effect.name, '') = '' then
    raise exception 'effect: it needs a record id of 32 bytes, a fence and a name' using errcode = '22023';
  elsif effect.status not between 100 and 999 then
    raise exception 'effect: the status is a number of 100 to 999, or null for none, not %', effect.status using errcode = '22023';
  end if;
  before := onceward.bounded();
  -- Not changed by a takeover before this transaction ends.
  select r.fence into newest from onceward.record r where r.id = effect.id for share;
  if newest > effect.fence then
    raise exception 'effect: the fence % was overtaken by %', effect.fence, newest using errcode = 'ID001', detail = 'stale_fence', hint = 'roll back';
  end if;
  -- The empty name holds the largest fence that was seen.
  insert into onceward.effect as e (record_id, fence, name, written_at) values (effect.id, effect.fence, '', onceward.now_us())
  on conflict (record_id, name) do update set fence = excluded.fence where e.fence <= excluded.fence;
  if not found then
    raise exception 'effect: the fence % was overtaken', effect.fence using errcode = 'ID001', detail = 'stale_fence', hint = 'roll back';
  end if;
  insert into onceward.effect (record_id, fence, name, written_at, status, headers, body)
  values (effect.id, effect.fence, effect.name, onceward.now_us(), effect.status::smallint,
    case when effect.status is not null then onceward.packed(effect.headers) end,
    case when effect.status is not null then coalesce(effect.body, '') end)
  on conflict (record_id, name) do nothing;
  is_first := found;
  perform set_config('lock_timeout', before, true);
  return is_first;
end $$;

-- Whether the effect was made, and the answer that was written down with it, its headers packed. `fence` is a new one,
-- larger than that of whoever may still be at work: from here on, those are refused. So made means that it took effect, not
-- made that it never will.
create function onceward.look(id bytea, fence bigint, name text, out made boolean, out status int, out headers bytea, out body bytea)
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  before text := onceward.bounded();
begin
  if octet_length(look.id) is distinct from 32 or look.fence is null or coalesce(look.name, '') = '' then
    raise exception 'probe_effect: it needs a record id of 32 bytes, a fence and a name' using errcode = '22023';
  end if;
  -- A fence that a crash takes back would refuse nobody.
  perform onceward.be_durable();
  -- Waits for a transaction that makes the effect just now.
  insert into onceward.effect as e (record_id, fence, name, written_at) values (look.id, look.fence, '', onceward.now_us())
  on conflict (record_id, name) do update set fence = greatest(e.fence, excluded.fence);
  perform set_config('lock_timeout', before, true);
  select true, e.status, e.headers, e.body into look.made, look.status, look.headers, look.body
  from onceward.effect e where e.record_id = look.id and e.name = look.name;
  look.made := coalesce(look.made, false);
end $$;

-- The same, for whoever asks by hand.
create function onceward.probe_effect(id bytea, fence bigint, name text default 'done') returns boolean
language sql volatile security definer set search_path = onceward, pg_catalog, pg_temp
as $$ select l.made from onceward.look(probe_effect.id, probe_effect.fence, probe_effect.name) l $$;

-- A message for others, written with the effect in one transaction. Its id is the same for the same record and name, so that
-- a consumer recognises a repetition; a repetition here writes nothing. Refuses an overtaken fence as effect does.
create function onceward.outbox(id bytea, fence bigint, topic text, payload bytea, name text default 'done') returns bytea
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  message_id bytea;
begin
  if coalesce(outbox.topic, '') = '' or outbox.payload is null or coalesce(outbox.name, '') = '' then
    raise exception 'outbox: it needs a topic, a payload and a name' using errcode = '22023';
  end if;
  message_id := sha256(convert_to('onceward/v1/outbox', 'UTF8') || '\x00'::bytea || outbox.id || convert_to(outbox.topic || ' ' || outbox.name, 'UTF8'));
  if onceward.effect(outbox.id, outbox.fence, 'outbox ' || outbox.topic || ' ' || outbox.name) then
    insert into onceward.outbox (message_id, record_id, fence, topic, payload, written_at)
    values (message_id, outbox.id, outbox.fence, outbox.topic, outbox.payload, onceward.now_us());
  end if;
  return message_id;
end $$;

-- Refuses the COMMIT of a row whose record its transaction does not hold: not claimed in it, or claimed behind a savepoint
-- that was rolled back to.
create function onceward.guard_row() returns trigger
language plpgsql security definer set search_path = onceward, pg_catalog, pg_temp
as $$
declare
  row_id constant bytea := (to_jsonb(new) ->> tg_argv[0])::bytea;
  held constant text := coalesce(current_setting('onceward.held', true), '');
begin
  if row_id is null then
    return null;
  end if;
  perform 1 from onceward.record r
    where r.id = row_id and r.state in (1, 3, 4) and position(encode(r.id, 'hex') || ':' || r.fence || ' ' in held) > 0;
  if not found then
    raise exception 'a row of % was written without its claim', tg_relid::regclass using errcode = 'ID003', detail = 'unclaimed',
      hint = 'call onceward.claim, or assert_fence, in the same transaction, before the row is written and not behind a savepoint that is rolled back to';
  end if;
  return null;
end $$;

-- From now on a row goes into this table only in a transaction that holds the claim named by its column (bytea, a record
-- id; null is let through). Checked at COMMIT. To be called by the owner of the table.
create function onceward.guard_table(guarded regclass, id_column name) returns void
language plpgsql volatile set search_path = onceward, pg_catalog, pg_temp
as $$
begin
  perform 1 from pg_attribute a where a.attrelid = guarded and a.attname = id_column and a.attnum > 0 and not a.attisdropped and a.atttypid = 'bytea'::regtype;
  if not found then
    raise exception 'guard_table: % has no column % of type bytea', guarded, quote_ident(id_column) using errcode = '42703';
  end if;
  execute format('drop trigger if exists onceward_guard on %s', guarded);
  execute format('create constraint trigger onceward_guard after insert on %s deferrable initially deferred for each row execute function onceward.guard_row(%L)', guarded, id_column);
end $$;
