-- What the functions are made of: the time, the encodings, the record id, the bounded lock.
-- Everything here is for the functions of this schema; nobody else may call what is not granted in the last file.

-- The time of a step on a record: never before what was last written of it, so that a clock that was set back ends no
-- lease and no retention early. It stands still until the clock has caught up.
create function onceward.time_of(there onceward.record) returns bigint
language sql volatile
as $$ select greatest(onceward.now_us(), (there).written_at) $$;

-- A span in microseconds; a month counts as 30 days.
create function onceward.micros(span interval) returns bigint
language plpgsql immutable
as $$
begin
  if span is null or span < interval '0' then
    raise exception 'a span of time is missing or negative' using errcode = '22023', hint = 'pass an interval of at least zero, such as ''10 seconds''';
  end if;
  return (extract(epoch from span) * 1000000)::bigint;
end $$;

-- The inverse of now_us; null for "never".
create function onceward.at(us bigint) returns timestamptz
language sql stable
as $$ select case when us > 1 then timestamptz 'epoch' + us * interval '1 microsecond' end $$;

-- Header and trailer fields as they are stored: of each, u16 length and name, u32 length and value, big-endian.
-- From a jsonb array of [name, value].
create function onceward.packed(fields jsonb) returns bytea
language plpgsql immutable
as $$
declare
  field jsonb;
  name bytea;
  value bytea;
  bytes bytea := '';
begin
  if fields is null then
    return bytes;
  end if;
  if jsonb_typeof(fields) <> 'array' then
    raise exception 'headers and trailers are an array of [name, value], this is of type %', jsonb_typeof(fields) using errcode = '22023';
  end if;
  for field in select * from jsonb_array_elements(fields) loop
    if jsonb_typeof(field) <> 'array' or jsonb_array_length(field) <> 2
      or jsonb_typeof(field->0) <> 'string' or jsonb_typeof(field->1) <> 'string' then
      raise exception 'a header is [name, value], two strings' using errcode = '22023';
    end if;
    name := convert_to(lower(field->>0), 'UTF8');
    value := convert_to(field->>1, 'UTF8');
    if octet_length(name) = 0 or octet_length(name) > 65535 then
      raise exception 'the name of a header has 1 to 65535 bytes, not %', octet_length(name) using errcode = '22023';
    end if;
    bytes := bytes || substring(int4send(octet_length(name)) from 3) || name || int4send(octet_length(value)) || value;
  end loop;
  return bytes;
end $$;

-- And back. A value that is not UTF-8 is read as Latin-1.
create function onceward.unpacked(bytes bytea) returns jsonb
language plpgsql immutable
as $$
declare
  fields jsonb := '[]';
  name text;
  value bytea;
  size int;
  place int := 0;
begin
  while place < coalesce(octet_length(bytes), 0) loop
    size := get_byte(bytes, place) * 256 + get_byte(bytes, place + 1);
    name := convert_from(substring(bytes from place + 3 for size), 'UTF8');
    place := place + 2 + size;
    size := ((get_byte(bytes, place) * 256 + get_byte(bytes, place + 1)) * 256 + get_byte(bytes, place + 2)) * 256 + get_byte(bytes, place + 3);
    value := substring(bytes from place + 5 for size);
    place := place + 4 + size;
    begin
      fields := fields || jsonb_build_array(jsonb_build_array(name, convert_from(value, 'UTF8')));
    exception when character_not_in_repertoire or untranslatable_character then
      fields := fields || jsonb_build_array(jsonb_build_array(name, convert_from(value, 'LATIN1')));
    end;
  end loop;
  return fields;
end $$;

-- HMAC-SHA-256 of sha256(), so that no extension is needed.
create function onceward.hmac(key bytea, message bytea) returns bytea
language plpgsql immutable
as $$
declare
  inner_pad bytea := decode(repeat('36', 64), 'hex');
  outer_pad bytea := decode(repeat('5c', 64), 'hex');
  used bytea := case when octet_length(key) > 64 then sha256(key) else key end;
begin
  for i in 0 .. octet_length(used) - 1 loop
    inner_pad := set_byte(inner_pad, i, get_byte(used, i) # 54);
    outer_pad := set_byte(outer_pad, i, get_byte(used, i) # 92);
  end loop;
  return sha256(outer_pad || sha256(inner_pad || message));
end $$;

-- The 32 bytes that name a record: the same that the gateway makes of the same scope and key.
create function onceward.record_id(tenant text, env text, principal text, route text, key text) returns bytea
language plpgsql stable security definer set search_path = onceward, pg_catalog, pg_temp
as $$
declare
  part text;
  message bytea := convert_to('onceward/v1', 'UTF8');
  held bytea;
begin
  foreach part in array array[tenant, env, principal, route, key] loop
    if part is null then
      raise exception 'a part of the record id is null' using errcode = '22004', hint = 'tenant, env, principal, route and key are all needed; an empty text is one';
    end if;
    message := message || int4send(octet_length(convert_to(part, 'UTF8'))) || convert_to(part, 'UTF8');
  end loop;
  select s.bytes into held from onceward.secret s;
  if held is null then
    raise exception 'the install secret is not in this database' using errcode = '55000', hint = 'run onceward migrate --secret';
  end if;
  return onceward.hmac(held, message);
end $$;

-- A record id from its text, as the header Idempotency-Record carries it: 43 characters of base64url.
create function onceward.record_id(record text) returns bytea
language plpgsql immutable set search_path = onceward, pg_catalog, pg_temp
as $$
declare
  id bytea;
begin
  if record ~ '^[A-Za-z0-9_-]{43}$' then
    id := decode(translate(record, '-_', '+/') || '=', 'base64');
    if onceward.record_text(id) = record then
      return id;
    end if;
  end if;
  raise exception 'that is no record id' using errcode = '22023', hint = 'a record id is 43 characters of base64url without padding, as in the header Idempotency-Record';
end $$;

-- And back.
create function onceward.record_text(id bytea) returns text
language sql immutable set search_path = onceward, pg_catalog, pg_temp
as $$ select rtrim(translate(encode(id, 'base64'), E'+/\n', '-_'), '=') $$;

-- The key that a step of the work passes on, to an API of somebody else: the same for the same parent and step.
create function onceward.child_key(parent text, step text) returns text
language sql immutable set search_path = onceward, pg_catalog, pg_temp
as $$
  select left(translate(encode(onceward.hmac(convert_to(parent, 'UTF8'),
    convert_to('onceward/v1/child', 'UTF8') || '\x00'::bytea || convert_to(step, 'UTF8')), 'base64'), E'+/\n', '-_'), 32)
$$;

-- How long a step may wait for a lock: onceward.wait_ms (default 20 s, at most 10 min), or the session's own lock_timeout
-- where that is shorter. Sets it, and returns what was set before, to be set again.
create function onceward.bounded() returns text
language plpgsql volatile
as $$
declare
  before constant text := current_setting('lock_timeout');
  wait_ms constant bigint := least(greatest(coalesce(nullif(current_setting('onceward.wait_ms', true), ''), '20000')::bigint, 1), 600000);
begin
  if before = '0' or before::interval > wait_ms * interval '1 millisecond' then
    perform set_config('lock_timeout', wait_ms::text, true);
  end if;
  return before;
end $$;

-- What was answered must survive a crash of the server, whatever the session says.
create function onceward.be_durable() returns void
language plpgsql volatile
as $$
begin
  if current_setting('synchronous_commit') = 'off' then
    perform set_config('synchronous_commit', 'on', true);
  end if;
end $$;

-- The record, locked until the transaction ends; all null where there is none, or where it has ended. Whoever locks it writes
-- it: durably, and those who wait for it hear of the commit.
create function onceward.locked(id bytea) returns onceward.record
language plpgsql volatile
as $$
#variable_conflict use_column
declare
  there onceward.record;
  before text := onceward.bounded();
begin
  perform onceward.be_durable();
  select r.* into there from onceward.record r where r.id = locked.id for update;
  perform set_config('lock_timeout', before, true);
  perform onceward.tell(array[locked.id]);
  if there.keep_until <> 0 and there.keep_until <= onceward.time_of(there) then
    return null;
  end if;
  return there;
end $$;

-- The fence of a new grant: above the clock, every fence whose record is gone, and the key's last.
create function onceward.next_fence(id bytea, now_us bigint, last bigint) returns bigint
language plpgsql volatile
as $$
begin
  return greatest(now_us, last + 1, (select m.fence + 1 from onceward.mark m where m.partition = get_byte(id, 0)));
end $$;

-- What this transaction holds, for the guards of tables (guard_table). Undone with the savepoint that it was written in.
create function onceward.hold(id bytea, fence bigint) returns void
language plpgsql volatile
as $$
begin
  perform set_config('onceward.held', coalesce(current_setting('onceward.held', true), '') || encode(id, 'hex') || ':' || fence || ' ', true);
end $$;

-- Says what it means that a holder's write did not meet its record.
create function onceward.lost(there onceward.record, fence bigint, verb text) returns void
language plpgsql volatile
as $$
begin
  if (there).id is null then
    raise exception '%: there is no claim', verb using errcode = 'ID003', detail = 'absent',
      hint = 'it was released, or a savepoint taken before it was rolled back to: roll the transaction back and claim again';
  elsif (there).state = 5 then
    raise exception '%: the key was erased', verb using errcode = 'ID004', detail = 'erased';
  elsif (there).fence = lost.fence then
    raise exception '%: this holder has settled the key otherwise', verb using errcode = 'ID003', detail = 'conflict',
      hint = 'claim again to get what was recorded';
  end if;
  raise exception '%: somebody else has the key', verb using errcode = 'ID003', detail = 'fenced',
    hint = 'roll the transaction back, and claim again to get what was recorded';
end $$;
