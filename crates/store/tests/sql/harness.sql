-- For the differential test: the clock is what the test says, and a list of steps is one round trip.
create or replace function onceward.now_us() returns bigint language sql volatile
as $$ select current_setting('test.now')::bigint $$;

-- Checks of columns are read anew by each statement; nothing here is about them.
do $$
declare
  one pg_catalog.record;
begin
  for one in select conname from pg_constraint where conrelid = 'onceward.record'::regclass and contype = 'c' loop
    execute format('alter table onceward.record drop constraint %I', one.conname);
  end loop;
end $$;

create schema diff;

create function diff.claimed(op jsonb, mode text) returns jsonb language plpgsql volatile as $$
begin
  return to_jsonb(c) - 'wait_until' || jsonb_build_object('wait_us', (extract(epoch from c.wait_until) * 1000000)::bigint)
  from onceward.claim(
    (op->>'id')::bytea, (op->>'fingerprint')::bytea, mode, (op->>'lease')::bigint * interval '1 microsecond',
    array(select jsonb_array_elements_text(op->'on_unknown')), (op->>'retry_max')::bigint,
    (op->>'unknown_max')::bigint * interval '1 microsecond', (op->>'keep')::bigint * interval '1 microsecond',
    (op->>'two_phase')::boolean, (op->>'claim_id')::bytea, (op->>'session')::bytea, (op->>'principal_proof')::bytea,
    (op->>'vouched')::boolean, (op->>'fingerprint_policy')::bigint, 'pay', 'acme', 'live') c;
end $$;

create function diff.ended(op jsonb, verb text, fence bigint) returns jsonb language plpgsql volatile as $$
declare
  id constant bytea := (op->>'id')::bytea;
  keep constant interval := (op->>'keep')::bigint * interval '1 microsecond';
  status constant int := (op->>'status')::int;
  body constant bytea := (op->>'body')::bytea;
begin
  case verb
    when 'complete' then return to_jsonb(onceward.complete(id, fence, status, op->'headers', body, keep, op->'trailers'));
    when 'fail' then return to_jsonb(onceward.fail(id, fence, 'final', status, op->'headers', body, keep, trailers => op->'trailers'));
    when 'fail_retryable' then
      return to_jsonb(onceward.fail(id, fence, 'retryable', keep => keep, retry_after => (op->>'retry_after')::bigint * interval '1 microsecond'));
    when 'release' then return to_jsonb(onceward.release(id, fence));
  end case;
end $$;

create function diff.one(op jsonb) returns jsonb language plpgsql volatile as $$
declare
  id constant bytea := (op->>'id')::bytea;
  fence constant bigint := (op->>'fence')::bigint;
  keep constant interval := (op->>'keep')::bigint * interval '1 microsecond';
  result jsonb;
  detail text;
begin
  perform set_config('test.now', op->>'clock', true);
  case op->>'verb'
    when 'claim' then return diff.claimed(op, 'lease');
    when 'claim_in_tx' then
      -- One transaction: what is not settled at its end does not stay.
      result := diff.claimed(op, 'tx');
      if result->>'outcome' = 'granted' then
        if op->>'ends' = 'rollback' then
          raise exception 'rolled back' using errcode = 'TX000', detail = result::text;
        end if;
        result := jsonb_build_array(result, diff.ended(op, op->>'ends', (result->>'fence')::bigint));
      end if;
      return result;
    when 'renew' then
      return to_jsonb((extract(epoch from onceward.renew(id, fence, (op->>'lease')::bigint * interval '1 microsecond')) * 1000000)::bigint);
    when 'checkpoint' then return to_jsonb(onceward.checkpoint(id, fence, (op->>'seq')::bigint, 'step', (op->>'body')::bytea));
    when 'dispatched' then perform onceward.dispatched(id, fence); return '"dispatched"';
    when 'assert_fence' then perform onceward.assert_fence(id, fence); return '"held"';
    when 'resolve' then
      return to_jsonb(onceward.resolve(id, fence, op->>'verdict', (op->>'status')::int, op->'headers', (op->>'body')::bytea, 'looked', keep, op->'trailers'));
    when 'forget' then return to_jsonb(onceward.forget(id, op->>'how', (op->>'force')::boolean, 'asked to', keep));
    when 'get' then return coalesce((select to_jsonb(g.state) from onceward.get(id) g), 'null');
    -- What a gateway may have written.
    when 'bare' then
      update onceward.record r set body_not_kept = (op->>'body_not_kept')::boolean, body_until = (op->>'body_until')::bigint
      where r.id = (op->>'id')::bytea;
      return '"bare"';
    when 'place' then
      insert into onceward.record values ((op->>'id')::bytea, fence, 1, (op->>'lease_until')::bigint, 0, (op->>'clock')::bigint, 1, false, false, 0,
        (op->>'claim_id')::bytea, (op->>'session')::bytea, null, 4294967295, decode(repeat('00', 32), 'hex'), '', '', '', '',
        0, 0, 0, '', null, null, null, null, false, 0, null, null, null);
      return '"place"';
    else return diff.ended(op, op->>'verb', fence);
  end case;
exception when others then
  get stacked diagnostics detail = pg_exception_detail;
  if sqlstate = 'TX000' then
    return jsonb_build_array(detail::jsonb, 'rollback');
  elsif detail = '' then
    return jsonb_build_object('error', sqlstate, 'said', sqlerrm);
  end if;
  return jsonb_build_object('error', sqlstate, 'detail', detail);
end $$;

create function diff.look(id bytea) returns jsonb language plpgsql volatile as $$
begin
  return jsonb_build_object(
    'row', (select to_jsonb(r) from onceward.record r where r.id = look.id),
    'mark', coalesce((select m.fence from onceward.mark m where m.partition = get_byte(look.id, 0)), 0));
end $$;

-- Does the steps as far as they say and leave what is wanted; returns how many did, and what the next one said and left.
create function diff.run(ops jsonb, out agreed int, out said jsonb) language plpgsql volatile as $$
declare
  op jsonb;
begin
  agreed := 0;
  for op in select * from jsonb_array_elements(ops) loop
    said := jsonb_build_array(diff.one(op->0), diff.look((op->0->>'id')::bytea));
    exit when said <> op->1;
    agreed := agreed + 1;
  end loop;
end $$;
