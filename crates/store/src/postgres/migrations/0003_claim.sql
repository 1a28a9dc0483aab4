-- The decision and the claim. decide() is the second copy of what core/decide.rs says; a differential test holds the two
-- to each other.

-- What a request may do, given the record that is there. Words that write: resume, take_over, settle. The others: mine,
-- in_flight, retry_later, replay, response_not_kept, failed, unknown, probe, principal_changed, key_reused, gone.
create function onceward.decide(
  there onceward.record, now_us bigint, claim_id bytea, principal_proof bytea, vouched boolean,
  fingerprint_policy bigint, fingerprint bytea, on_unknown text[], retry_max bigint, unknown_max bigint,
  out decision text, out verified boolean, out reason text)
language plpgsql immutable
as $$
declare
  placed constant boolean := there.fingerprint_policy = 4294967295;
  same_rules constant boolean := there.fingerprint_policy = decide.fingerprint_policy;
  -- 1 is the lease of a claim that ends with its transaction (claim, mode 'tx'): only that transaction ever sees it.
  lives constant boolean := there.state = 1 and (there.lease_until > now_us or there.lease_until = 1);
  age bigint;
  step text;
  span text;
begin
  verified := true;
  if there.principal_proof is not null and there.principal_proof is distinct from decide.principal_proof and not vouched then
    decision := 'principal_changed';
    return;
  elsif there.state = 5 then
    decision := 'gone';
    return;
  end if;
  verified := same_rules or placed;
  if same_rules and not placed and there.fingerprint <> decide.fingerprint then
    decision := 'key_reused';
    return;
  end if;

  decision := case
    when lives and there.claim_id = decide.claim_id then 'mine'
    when there.state = 1 and not lives and there.claim_id = decide.claim_id then 'resume'
    when lives then 'in_flight'
    when there.state = 2 and there.not_before > now_us then 'retry_later'
    when there.state = 2 then 'take_over'
    when there.state = 1 and not (there.dispatched or there.ambiguous) then 'take_over'
    when there.state in (3, 4) and there.status is null then 'failed'
    when there.state in (3, 4) and (there.body_not_kept or (there.body_until <> 0 and there.body_until <= now_us)) then 'response_not_kept'
    when there.state in (3, 4) then 'replay'
  end;
  if decision is not null then
    return;
  end if;

  -- Unknown: the list is worked, each step settles or passes on; at its end the outcome is held.
  decision := 'unknown';
  age := greatest(now_us - case when there.lease_until = 0 then there.written_at else there.lease_until end, 0);
  if age >= unknown_max then
    decision := 'settle';
    reason := 'unknown for longer than unknown_max';
    return;
  end if;
  foreach step in array on_unknown loop
    span := substring(step from '^\S+\s+(.*)$');
    case split_part(step, ' ', 1)
      when 'hold' then
        if span is null or age < onceward.micros(span::interval) then
          return;
        end if;
      when 'probe' then
        if age >= onceward.micros(coalesce(span, '0')::interval) then
          decision := 'probe';
        end if;
        return;
      when 'retry' then
        if there.attempt <= retry_max then
          decision := 'take_over';
          return;
        end if;
      when 'fail' then
        decision := 'settle';
        reason := 'on_unknown: fail';
        return;
      else
        raise exception 'on_unknown: there is no step %', quote_literal(step) using errcode = '22023',
          hint = 'the steps are hold, hold SPAN, probe, probe SPAN, retry, fail';
    end case;
  end loop;
end $$;

-- Makes the record of a key that has none, with a lease of so many microseconds, or, where that is null, one that ends
-- with the transaction. All null where there is one meanwhile: then look again.
create function onceward.inserted(made onceward.record, lease_us bigint) returns onceward.record
language plpgsql volatile
as $$
declare
  now_us bigint := onceward.now_us();
  before text := onceward.bounded();
  risen bigint;
  is_new boolean;
begin
  made.fence := onceward.next_fence(made.id, now_us, 0);
  made.written_at := now_us;
  made.lease_until := coalesce(now_us + lease_us, 1);
  -- Waits for a transaction that has inserted the key, or taken it away, and is not at its end.
  insert into onceward.record select (made).* on conflict do nothing;
  is_new := found;
  if is_new and current_setting('transaction_isolation') <> 'read committed' then
    -- The mark is read as of the transaction's start: where it was raised since, this fails as a conflict (40001). Its lock
    -- is given back at once.
    begin
      perform 1 from onceward.mark m where m.partition = get_byte(made.id, 0) for share;
      raise exception using errcode = 'ID000';
    exception when sqlstate 'ID000' then
      null;
    end;
  end if;
  perform set_config('lock_timeout', before, true);
  if not is_new then
    return null;
  end if;
  -- It may have waited: for a release, that has raised the mark since, or so long that its lease were shorter.
  now_us := greatest(now_us, onceward.now_us());
  risen := onceward.next_fence(made.id, now_us, made.fence - 1);
  if risen > made.fence then
    made.fence := risen;
    made.written_at := now_us;
    made.lease_until := coalesce(now_us + lease_us, 1);
    update onceward.record r set fence = made.fence, written_at = made.written_at, lease_until = made.lease_until
    where r.id = made.id;
  end if;
  return made;
end $$;

-- Claims a key. One atomic step; the locks it takes are held until the transaction ends.
--
-- mode 'tx': claim, the business writes and complete are one transaction. Whoever claims the same key meanwhile waits for
-- its end, at most onceward.wait_ms, then 55P03. A commit without complete, fail or release is refused.
-- mode 'lease': the claim is committed by itself, and holds for `lease` unless renewed.
--
-- outcome: granted, replay, in_flight, retry_later, response_not_kept, failed, unknown, probe. Another request under the
-- same key is ID002, an erased key ID004.
create function onceward.claim(
  id bytea, fingerprint bytea, mode text default 'tx', lease interval default '10 seconds',
  on_unknown text[] default '{hold}', retry_max bigint default 3, unknown_max interval default '30 days',
  keep interval default '1 day', two_phase boolean default false,
  claim_id bytea default null, session bytea default null,
  principal_proof bytea default null, vouched boolean default false, fingerprint_policy bigint default 1,
  route text default '', tenant text default 'default', env text default 'default')
returns table (
  outcome text, fence bigint, attempt bigint, ambiguous boolean, reentrant boolean, verified boolean, wait_until timestamptz,
  status int, headers jsonb, body bytea, trailers jsonb,
  checkpoint_seq bigint, checkpoint_name text, checkpoint_data bytea)
language plpgsql volatile security definer set search_path = onceward, pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  there onceward.record;
  decision text;
  is_verified boolean;
  why text;
  now_us bigint;
  granted bigint;
  until bigint;
  lease_us bigint := onceward.micros(claim.lease);
  keep_us bigint := onceward.micros(claim.keep);
  unknown_us bigint := onceward.micros(claim.unknown_max);
  own_id bytea := coalesce(claim.claim_id, uuid_send(gen_random_uuid()));
  own_session bytea := coalesce(claim.session, decode(repeat('00', 16), 'hex'));
  in_tx boolean := claim.mode = 'tx';
  is_locked boolean := false;
  is_absent boolean := true;
  before text;
begin
  if octet_length(claim.id) is distinct from 32 or octet_length(claim.fingerprint) is distinct from 32 then
    raise exception 'claim: id and fingerprint have 32 bytes each' using errcode = '22023',
      hint = 'the id is made by onceward.record_id(tenant, env, principal, route, key), a fingerprint by sha256(request)';
  elsif octet_length(own_id) <> 16 or octet_length(own_session) <> 16 or octet_length(coalesce(claim.principal_proof, own_id)) <> 16 then
    raise exception 'claim: claim_id, session and principal_proof have 16 bytes each' using errcode = '22023';
  elsif claim.mode is null or claim.mode not in ('tx', 'lease') then
    raise exception 'claim: there is no mode %', quote_nullable(claim.mode) using errcode = '22023', hint = 'the modes are tx and lease';
  elsif claim.on_unknown is null or claim.retry_max is null or claim.two_phase is null or claim.vouched is null
    or claim.fingerprint_policy is null or claim.route is null or claim.tenant is null or claim.env is null then
    raise exception 'claim: only claim_id, session and principal_proof may be null' using errcode = '22004';
  end if;
  perform onceward.be_durable();

  for round in 1 .. 100 loop
    if is_absent then
      there := onceward.inserted(row(
        claim.id, 0, 1, 0, 0, 0, 1, not two_phase, false, 1, own_id, own_session,
        claim.principal_proof, claim.fingerprint_policy, claim.fingerprint, '', claim.route, claim.tenant, claim.env, 0, 0, 0, '',
        null, null, null, null, false, 0, null, null, null)::onceward.record, case when not in_tx then lease_us end);
      if there.id is not null then
        perform onceward.hold(there.id, there.fence);
        return query select 'granted', there.fence, 1::bigint, false, false, true, null::timestamptz,
          null::int, null::jsonb, null::bytea, null::jsonb, null::bigint, null::text, null::bytea;
        return;
      end if;
    end if;

    -- What is there is read by a statement of its own, whose snapshot is newer than any wait; what is settled needs no lock.
    if is_locked then
      before := onceward.bounded();
      select r.* into there from onceward.record r where r.id = claim.id for update;
      is_absent := not found;
      perform set_config('lock_timeout', before, true);
    else
      select r.* into there from onceward.record r where r.id = claim.id;
      is_absent := not found;
    end if;
    continue when is_absent;
    now_us := onceward.time_of(there);

    if there.keep_until <> 0 and there.keep_until <= now_us then
      decision := 'insert';
      is_verified := true;
    else
      select d.decision, d.verified, d.reason into decision, is_verified, why from onceward.decide(
        there, now_us, own_id, claim.principal_proof, claim.vouched, claim.fingerprint_policy, claim.fingerprint,
        claim.on_unknown, claim.retry_max, unknown_us) d;
    end if;
    if decision in ('insert', 'resume', 'take_over', 'settle') and not is_locked then
      is_locked := true;
      continue;
    end if;
    exit;
  end loop;

  if is_absent then
    raise exception 'claim: the key came and went a hundred times' using errcode = '40001', hint = 'try again';
  end if;

  until := case when in_tx then 1 else now_us + lease_us end;
  granted := onceward.next_fence(claim.id, now_us, there.fence);
  case decision
    when 'principal_changed' then
      raise exception 'claim: the key was claimed with other credentials' using errcode = 'ID002', detail = 'principal_changed';
    when 'key_reused' then
      raise exception 'claim: the key was used for another request' using errcode = 'ID002', detail = 'key_reused',
        hint = 'a key names one request: send another request with another key';
    when 'gone' then
      raise exception 'claim: the key was erased' using errcode = 'ID004', detail = 'gone';
    when 'insert' then
      update onceward.record r set
        fence = granted, revision = 1, lease_until = until, keep_until = 0, written_at = now_us,
        state = 1, dispatched = not two_phase, ambiguous = false, attempt = 1, claim_id = own_id, session = own_session,
        principal_proof = claim.principal_proof, fingerprint_policy = claim.fingerprint_policy, fingerprint = claim.fingerprint,
        fields = '', route = claim.route, tenant = claim.tenant, env = claim.env,
        claimed_at = 0, settled_at = 0, not_before = 0, reason = '',
        status = null, headers = null, body = null, trailers = null, body_not_kept = false, body_until = 0,
        checkpoint_seq = null, checkpoint_name = null, checkpoint_data = null
      where r.id = claim.id returning r.* into there;
    when 'take_over' then
      update onceward.record r set
        fence = granted, revision = r.revision + 1, lease_until = until, keep_until = 0, written_at = now_us,
        state = 1, dispatched = not two_phase, ambiguous = r.ambiguous or (r.state = 1 and r.dispatched),
        attempt = least(r.attempt + 1, 4294967295), claim_id = own_id, session = own_session,
        principal_proof = claim.principal_proof, fingerprint_policy = claim.fingerprint_policy, fingerprint = claim.fingerprint,
        -- The first claim's fence is its time, where nobody wrote it down.
        claimed_at = case when r.claimed_at = 0 then r.fence else r.claimed_at end,
        settled_at = 0, not_before = 0, reason = ''
      where r.id = claim.id returning r.* into there;
    when 'resume' then
      update onceward.record r set revision = r.revision + 1, lease_until = until, keep_until = 0, written_at = now_us
      where r.id = claim.id returning r.* into there;
    when 'settle' then
      perform onceward.settle(there, now_us, granted, 4::smallint, null, null, null, null, keep_us, why);
      there.fence := granted;
      there.ambiguous := false;
    else
      null;
  end case;

  if decision in ('mine', 'resume', 'take_over', 'insert') then
    perform onceward.hold(claim.id, there.fence);
    return query select 'granted', there.fence, there.attempt, there.ambiguous, decision in ('mine', 'resume'), is_verified, null::timestamptz,
      null::int, null::jsonb, null::bytea, null::jsonb,
      there.checkpoint_seq, there.checkpoint_name, there.checkpoint_data;
    return;
  end if;
  return query select
    case decision when 'settle' then 'failed' else decision end,
    there.fence, there.attempt, there.ambiguous, false, is_verified,
    onceward.at(case decision when 'in_flight' then there.lease_until when 'retry_later' then there.not_before else 0 end),
    case when decision in ('replay', 'response_not_kept') then there.status::int end,
    case when decision = 'replay' then onceward.unpacked(there.headers) end,
    case when decision = 'replay' then coalesce(there.body, '') end,
    case when decision = 'replay' then onceward.unpacked(there.trailers) end,
    null::bigint, null::text, null::bytea;
end $$;

-- A claim in mode 'tx' ends with its transaction: one that was not settled in it is refused at COMMIT, so that no business
-- write is committed whose repetition nobody would recognise.
create function onceward.settled_in_tx() returns trigger
language plpgsql security definer set search_path = onceward, pg_catalog, pg_temp
as $$
begin
  perform 1 from onceward.record r where r.id = new.id and r.lease_until = 1;
  if found then
    raise exception 'a claim in mode tx was not settled in its transaction' using errcode = 'ID003', detail = 'open',
      hint = 'call complete, fail or release before COMMIT; for work beyond one transaction claim in mode lease';
  end if;
  return null;
end $$;

create constraint trigger settled_in_tx after insert or update on onceward.record
  deferrable initially deferred for each row when (new.lease_until = 1) execute function onceward.settled_in_tx();
