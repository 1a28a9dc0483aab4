-- The steps of the store, each one call: a statement of its own, so that a pooler in transaction mode carries it, with
-- its plans kept in the session, so that no prepared statement is needed.
--
-- Rows are found by a join with the ids, not by = ANY: that would look for each id in every partition.
-- Rows are locked in the order of their ids before they are written, and marks after all rows, in the order of their
-- partitions: two calls never wait for each other in a circle. A row that a long transaction holds is waited for half
-- a second. `floor` is the latest time that the caller knows: the store's time never goes back behind it.

-- What the bytes of a record are counted as; the same as in the program.
CREATE FUNCTION onceward.record_bytes(r onceward.record) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT 256 + octet_length((r).fields) + octet_length((r).route) + octet_length((r).tenant)
        + octet_length((r).env) + octet_length((r).reason) + coalesce(octet_length((r).headers), 0)
        + coalesce(octet_length((r).body), 0) + coalesce(octet_length((r).trailers), 0)
        + coalesce(octet_length((r).checkpoint_name), 0) + coalesce(octet_length((r).checkpoint_data), 0)::bigint $$;

-- Notifies those who said that they wait for one of these keys.
CREATE FUNCTION onceward.tell(ids bytea[]) RETURNS void
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    IF EXISTS (SELECT FROM onceward.waiter) THEN
        PERFORM pg_notify('onceward', encode(w.record_id, 'hex')) FROM onceward.waiter w WHERE w.record_id = ANY (ids);
    END IF;
END
$$;

-- Makes each record that is not there, or has ended; returns for each of the others what is there. One that is in
-- neither answer met another write each time.
CREATE FUNCTION onceward.store_insert(
    floor_us bigint, w_id bytea[], w_lease bigint[],
    w_state smallint[], w_dispatched boolean[], w_ambiguous boolean[], w_attempt bigint[], w_claim_id bytea[],
    w_session bytea[], w_principal_proof bytea[], w_fingerprint_policy bigint[], w_fingerprint bytea[],
    w_fields bytea[], w_route text[], w_tenant text[], w_env text[], w_claimed_at bigint[], w_settled_at bigint[],
    w_not_before bigint[], w_reason text[])
    RETURNS TABLE (item bytea, done boolean, new_fence bigint, new_revision bigint, at bigint, was bigint, there onceward.record)
    LANGUAGE plpgsql VOLATILE
    SET lock_timeout = '500ms' SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET plan_cache_mode = force_generic_plan
    AS $$
DECLARE
    t bigint;
    one record;
    -- Not settled yet.
    open_ids bytea[] := w_id;
    new_ids bytea[];
BEGIN
    PERFORM onceward.be_durable();
    FOR round IN 1..4 LOOP
        t := greatest(onceward.now_us(), floor_us);
        -- A key that is there costs neither a lock nor a commit.
        WITH made AS (
            INSERT INTO onceward.record AS r (id, fence, revision, lease_until, keep_until, written_at,
                state, dispatched, ambiguous, attempt, claim_id, session, principal_proof, fingerprint_policy,
                fingerprint, fields, route, tenant, env, claimed_at, settled_at, not_before, reason, body_not_kept, body_until)
            SELECT w.id, t, 1, t + w.lease, 0, t,
                w.state, w.dispatched, w.ambiguous, w.attempt, w.claim_id, w.session, w.principal_proof,
                w.fingerprint_policy, w.fingerprint, w.fields, w.route, w.tenant, w.env, w.claimed_at, w.settled_at,
                w.not_before, w.reason, false, 0
            FROM
                unnest(w_id, w_lease,
                    w_state, w_dispatched, w_ambiguous, w_attempt, w_claim_id, w_session, w_principal_proof,
                    w_fingerprint_policy, w_fingerprint, w_fields, w_route, w_tenant, w_env, w_claimed_at,
                    w_settled_at, w_not_before, w_reason)
                    AS w (id, lease,
                        state, dispatched, ambiguous, attempt, claim_id, session, principal_proof,
                        fingerprint_policy, fingerprint, fields, route, tenant, env, claimed_at, settled_at,
                        not_before, reason)
            WHERE round = 1 OR w.id = ANY (open_ids)
            ORDER BY w.id
            ON CONFLICT (id) DO NOTHING
            RETURNING r.id
        )
        SELECT array_agg(made.id) INTO new_ids FROM made;
        IF new_ids IS NOT NULL THEN
            -- In a statement of its own: a key that was deleted while this one waited has raised its mark since.
            IF EXISTS (SELECT FROM onceward.mark m WHERE m.fence >= t) THEN
                UPDATE onceward.record r SET fence = m.fence + 1 FROM onceward.mark m
                WHERE r.id = ANY (new_ids) AND m.partition = get_byte(r.id, 0) AND m.fence >= r.fence;
                RETURN QUERY SELECT r.id, true, r.fence, 1::bigint, t, 0::bigint, NULL::onceward.record
                    FROM onceward.record r WHERE r.id = ANY (new_ids);
            ELSE
                RETURN QUERY SELECT made, true, t, 1::bigint, t, 0::bigint, NULL::onceward.record FROM unnest(new_ids) made;
            END IF;
            IF EXISTS (SELECT FROM onceward.waiter) THEN
                PERFORM onceward.tell(new_ids);
            END IF;
            EXIT WHEN cardinality(new_ids) = cardinality(open_ids);
            open_ids := ARRAY(SELECT o FROM unnest(open_ids) o WHERE o <> ALL (new_ids));
        END IF;
        -- Fresh snapshots from here on: what was waited for above is seen.
        t := greatest(onceward.now_us(), floor_us);
        FOR one IN
            SELECT r.id, r AS there FROM unnest(open_ids) o (id) JOIN onceward.record r ON r.id = o.id
            WHERE r.keep_until = 0 OR r.keep_until > t
        LOOP
            RETURN QUERY SELECT one.id, false, 0::bigint, 0::bigint, greatest(onceward.now_us(), floor_us), 0::bigint, one.there;
            open_ids := array_remove(open_ids, one.id);
        END LOOP;
        EXIT WHEN cardinality(open_ids) = 0;
        -- What has ended is replaced in its place.
        FOR one IN
            WITH ended AS MATERIALIZED (
                SELECT r.id, onceward.record_bytes(r) AS bytes FROM unnest(open_ids) o (id) JOIN onceward.record r ON r.id = o.id
                WHERE r.keep_until > 0 AND r.keep_until <= t ORDER BY r.id FOR UPDATE OF r
            )
            UPDATE onceward.record r SET
                fence = greatest(t, r.fence + 1,
                    (SELECT m.fence + 1 FROM onceward.mark m WHERE m.partition = get_byte(r.id, 0))),
                revision = 1, lease_until = t + w.lease, keep_until = 0, written_at = t,
                state = w.state, dispatched = w.dispatched, ambiguous = w.ambiguous, attempt = w.attempt,
                claim_id = w.claim_id, session = w.session, principal_proof = w.principal_proof,
                fingerprint_policy = w.fingerprint_policy, fingerprint = w.fingerprint, fields = w.fields,
                route = w.route, tenant = w.tenant, env = w.env, claimed_at = w.claimed_at,
                settled_at = w.settled_at, not_before = w.not_before, reason = w.reason,
                status = NULL, headers = NULL, body = NULL, trailers = NULL, body_not_kept = false, body_until = 0,
                checkpoint_seq = NULL, checkpoint_name = NULL, checkpoint_data = NULL
            FROM
                unnest(w_id, w_lease,
                    w_state, w_dispatched, w_ambiguous, w_attempt, w_claim_id, w_session, w_principal_proof,
                    w_fingerprint_policy, w_fingerprint, w_fields, w_route, w_tenant, w_env, w_claimed_at,
                    w_settled_at, w_not_before, w_reason)
                    AS w (id, lease,
                        state, dispatched, ambiguous, attempt, claim_id, session, principal_proof,
                        fingerprint_policy, fingerprint, fields, route, tenant, env, claimed_at, settled_at,
                        not_before, reason)
                JOIN ended ON ended.id = w.id
            WHERE r.id = w.id AND r.keep_until > 0 AND r.keep_until <= t
            RETURNING r.id, r.fence, ended.bytes
        LOOP
            RETURN QUERY SELECT one.id, true, one.fence, 1::bigint, t, one.bytes, NULL::onceward.record;
            open_ids := array_remove(open_ids, one.id);
            PERFORM onceward.tell(ARRAY[one.id]);
        END LOOP;
        EXIT WHEN cardinality(open_ids) = 0;
    END LOOP;
END
$$;

-- Replaces each record that is meant: in flight under the fence where no revision is given, else exactly the one with
-- fence and revision. Lease: null as it is, -1 over, else from now; keep: null without end, else from now. For each that
-- is not, what is there.
CREATE FUNCTION onceward.store_replace(
    floor_us bigint, w_id bytea[], w_fence bigint[], w_revision bigint[], w_raise boolean[], w_lease bigint[],
    w_keep bigint[],
    w_state smallint[], w_dispatched boolean[], w_ambiguous boolean[], w_attempt bigint[], w_claim_id bytea[],
    w_session bytea[], w_principal_proof bytea[], w_fingerprint_policy bigint[], w_fingerprint bytea[],
    w_fields bytea[], w_route text[], w_tenant text[], w_env text[], w_claimed_at bigint[], w_settled_at bigint[],
    w_not_before bigint[], w_reason text[], w_status smallint[], w_headers bytea[], w_body bytea[],
    w_trailers bytea[], w_body_not_kept boolean[], w_body_until bigint[], w_checkpoint_seq bigint[],
    w_checkpoint_name text[], w_checkpoint_data bytea[])
    RETURNS TABLE (item bytea, done boolean, new_fence bigint, new_revision bigint, at bigint, was bigint, there onceward.record)
    LANGUAGE plpgsql VOLATILE
    SET lock_timeout = '500ms' SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET plan_cache_mode = force_generic_plan
    AS $$
DECLARE
    t bigint;
    one record;
    locked_ids bytea[];
    locked_bytes bigint[];
    open_ids bytea[] := w_id;
BEGIN
    PERFORM onceward.be_durable();
    SELECT array_agg(l.id), array_agg(l.bytes) INTO locked_ids, locked_bytes FROM (
        SELECT r.id, onceward.record_bytes(r) AS bytes FROM unnest(w_id) w (id) JOIN onceward.record r ON r.id = w.id
        ORDER BY r.id FOR UPDATE OF r) l;
    -- Only now: what was waited for is dated after the wait.
    t := greatest(onceward.now_us(), floor_us);
    IF locked_ids IS NOT NULL THEN
        FOR one IN
            UPDATE onceward.record r SET
                fence = CASE WHEN w.raise THEN greatest(t, r.fence + 1,
                    (SELECT m.fence + 1 FROM onceward.mark m WHERE m.partition = get_byte(r.id, 0))) ELSE r.fence END,
                revision = r.revision + 1,
                lease_until = CASE WHEN w.lease IS NULL THEN r.lease_until WHEN w.lease < 0 THEN 0 ELSE t + w.lease END,
                keep_until = CASE WHEN w.keep IS NULL THEN 0 ELSE t + w.keep END,
                written_at = t,
                state = w.state, dispatched = w.dispatched, ambiguous = w.ambiguous, attempt = w.attempt,
                claim_id = w.claim_id, session = w.session, principal_proof = w.principal_proof,
                fingerprint_policy = w.fingerprint_policy, fingerprint = w.fingerprint, fields = w.fields,
                route = w.route, tenant = w.tenant, env = w.env, claimed_at = w.claimed_at,
                settled_at = w.settled_at, not_before = w.not_before, reason = w.reason, status = w.status,
                headers = w.headers, body = w.body, trailers = w.trailers, body_not_kept = w.body_not_kept,
                body_until = w.body_until, checkpoint_seq = w.checkpoint_seq, checkpoint_name = w.checkpoint_name,
                checkpoint_data = w.checkpoint_data
            FROM
            unnest(w_id, w_fence, w_revision, w_raise, w_lease, w_keep,
                w_state, w_dispatched, w_ambiguous, w_attempt, w_claim_id, w_session, w_principal_proof,
                w_fingerprint_policy, w_fingerprint, w_fields, w_route, w_tenant, w_env, w_claimed_at, w_settled_at,
                w_not_before, w_reason, w_status, w_headers, w_body, w_trailers, w_body_not_kept, w_body_until,
                w_checkpoint_seq, w_checkpoint_name, w_checkpoint_data)
                AS w (id, fence, revision, raise, lease, keep,
                    state, dispatched, ambiguous, attempt, claim_id, session, principal_proof, fingerprint_policy,
                    fingerprint, fields, route, tenant, env, claimed_at, settled_at, not_before, reason, status,
                    headers, body, trailers, body_not_kept, body_until, checkpoint_seq, checkpoint_name,
                    checkpoint_data)
                JOIN unnest(locked_ids, locked_bytes) AS l (id, bytes) ON l.id = w.id
            WHERE r.id = w.id AND r.fence = w.fence AND (r.keep_until = 0 OR r.keep_until > t)
                AND CASE WHEN w.revision IS NULL THEN r.state = 1 ELSE r.revision = w.revision END
            RETURNING r.id, r.fence, r.revision, l.bytes
        LOOP
            RETURN QUERY SELECT one.id, true, one.fence, one.revision, t, one.bytes, NULL::onceward.record;
            open_ids := array_remove(open_ids, one.id);
        END LOOP;
        IF EXISTS (SELECT FROM onceward.waiter) THEN
            PERFORM onceward.tell(locked_ids);
        END IF;
    END IF;
    IF cardinality(open_ids) > 0 THEN
        RETURN QUERY SELECT o, false, 0::bigint, 0::bigint, greatest(onceward.now_us(), floor_us), 0::bigint, r
            FROM unnest(open_ids) o LEFT JOIN onceward.record r ON r.id = o;
    END IF;
END
$$;

-- Renews a holder's lease, which never gets shorter by it.
CREATE FUNCTION onceward.store_extend(floor_us bigint, w_id bytea, w_fence bigint, w_lease bigint)
    RETURNS TABLE (item bytea, done boolean, new_fence bigint, new_revision bigint, at bigint, was bigint, there onceward.record)
    LANGUAGE plpgsql VOLATILE
    SET lock_timeout = '500ms' SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET plan_cache_mode = force_generic_plan
    AS $$
DECLARE
    t bigint;
    held onceward.record;
BEGIN
    PERFORM onceward.be_durable();
    SELECT r.* INTO held FROM onceward.record r WHERE r.id = w_id FOR UPDATE;
    t := greatest(onceward.now_us(), floor_us);
    IF held.id IS NULL OR held.fence <> w_fence OR held.state <> 1 THEN
        RETURN QUERY SELECT w_id, false, 0::bigint, 0::bigint, t, 0::bigint, held;
        RETURN;
    END IF;
    UPDATE onceward.record r SET lease_until = greatest(r.lease_until, t + w_lease), revision = r.revision + 1, written_at = t
    WHERE r.id = w_id;
    PERFORM onceward.tell(ARRAY[w_id]);
    RETURN QUERY SELECT w_id, true, held.fence, held.revision + 1, t, 0::bigint, NULL::onceward.record;
END
$$;

-- Removes the record that is meant, as above, and remembers its fence. What it was is returned.
CREATE FUNCTION onceward.store_remove(floor_us bigint, w_id bytea, w_fence bigint, w_revision bigint)
    RETURNS TABLE (item bytea, done boolean, new_fence bigint, new_revision bigint, at bigint, was bigint, there onceward.record)
    LANGUAGE plpgsql VOLATILE
    SET lock_timeout = '500ms' SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET plan_cache_mode = force_generic_plan
    AS $$
DECLARE
    t bigint;
    held onceward.record;
BEGIN
    PERFORM onceward.be_durable();
    SELECT r.* INTO held FROM onceward.record r WHERE r.id = w_id FOR UPDATE;
    t := greatest(onceward.now_us(), floor_us);
    IF held.id IS NULL OR held.fence <> w_fence OR (held.keep_until > 0 AND held.keep_until <= t)
        OR (CASE WHEN w_revision IS NULL THEN held.state <> 1 ELSE held.revision <> w_revision END) THEN
        RETURN QUERY SELECT w_id, false, 0::bigint, 0::bigint, t, 0::bigint, held;
        RETURN;
    END IF;
    DELETE FROM onceward.record r WHERE r.id = w_id;
    UPDATE onceward.mark m SET fence = held.fence WHERE m.partition = get_byte(w_id, 0) AND m.fence < held.fence;
    PERFORM onceward.tell(ARRAY[w_id]);
    RETURN QUERY SELECT w_id, true, held.fence, held.revision, t, onceward.record_bytes(held), held;
END
$$;

-- Reads each.
CREATE FUNCTION onceward.store_get(floor_us bigint, w_id bytea[])
    RETURNS TABLE (item bytea, at bigint, standby boolean, there onceward.record)
    LANGUAGE plpgsql VOLATILE
    SET jit = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
    AS $$
BEGIN
    RETURN QUERY SELECT w, greatest(onceward.now_us(), floor_us), pg_is_in_recovery(), r
        FROM unnest(w_id) w LEFT JOIN onceward.record r ON r.id = w;
END
$$;

-- A page in the order of the ids; of open records alone where asked for.
CREATE FUNCTION onceward.store_scan(floor_us bigint, after bytea, page_max bigint, only_open boolean)
    RETURNS TABLE (item bytea, at bigint, standby boolean, there onceward.record)
    LANGUAGE plpgsql VOLATILE
    SET jit = off SET enable_seqscan = off
    AS $$
DECLARE
    ids bytea[];
BEGIN
    IF only_open THEN
        -- By the index of open records first: the order of ids would lead through all the others.
        ids := ARRAY(SELECT o.id FROM (SELECT r.id FROM onceward.record r WHERE r.state = 1 AND r.id > after OFFSET 0) o
            ORDER BY o.id LIMIT page_max);
        -- One that was settled meanwhile keeps its place, so that a full page is known as one.
        RETURN QUERY SELECT i, greatest(onceward.now_us(), floor_us), pg_is_in_recovery(), r
            FROM unnest(ids) i LEFT JOIN onceward.record r ON r.id = i AND r.state = 1 ORDER BY i;
    ELSE
        RETURN QUERY SELECT r.id, greatest(onceward.now_us(), floor_us), pg_is_in_recovery(), r FROM onceward.record r
            WHERE r.id > after ORDER BY r.id LIMIT page_max;
    END IF;
END
$$;

-- Takes away ended records, and the bodies of those whose body ends before; rows that somebody holds are left for the
-- next time. One row a tenant, and one without for the bodies.
CREATE FUNCTION onceward.store_sweep(floor_us bigint, rows_max bigint)
    RETURNS TABLE (of_tenant text, gone bigint, gone_bytes bigint, bare bigint)
    LANGUAGE plpgsql VOLATILE
    SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
DECLARE
    t bigint := greatest(onceward.now_us(), floor_us);
    ids bytea[];
    bare_ids bytea[];
    parts smallint[];
    fences bigint[];
BEGIN
    PERFORM onceward.be_durable();
    SELECT array_agg(d.id) FILTER (WHERE d.keep_until <= t), array_agg(d.id) FILTER (WHERE d.keep_until > t)
    INTO ids, bare_ids FROM (
        SELECT r.id, r.keep_until FROM onceward.record r
        WHERE r.keep_until > 0 AND least(r.keep_until, nullif(r.body_until, 0)) <= t
        LIMIT rows_max FOR UPDATE SKIP LOCKED) d;
    IF cardinality(ids) > 0 THEN
        SELECT array_agg(g.part ORDER BY g.part), array_agg(g.fence ORDER BY g.part) INTO parts, fences FROM (
            SELECT get_byte(r.id, 0)::smallint AS part, max(r.fence) AS fence
            FROM unnest(ids) i (id) JOIN onceward.record r ON r.id = i.id GROUP BY 1) g;
        RETURN QUERY WITH swept AS (
                DELETE FROM onceward.record r USING unnest(ids) i (id) WHERE r.id = i.id
                RETURNING r.tenant, onceward.record_bytes(r) AS bytes)
            SELECT s.tenant, count(*), sum(s.bytes)::bigint, 0::bigint FROM swept s GROUP BY s.tenant;
        -- In the order of the partitions, after the rows: never in a circle with whoever else raises marks.
        PERFORM FROM onceward.mark m WHERE m.partition = ANY (parts) ORDER BY m.partition FOR UPDATE;
        UPDATE onceward.mark m SET fence = p.fence FROM unnest(parts, fences) AS p (part, fence)
        WHERE m.partition = p.part AND m.fence < p.fence;
    END IF;
    IF cardinality(bare_ids) > 0 THEN
        UPDATE onceward.record r SET body = '', trailers = '', body_not_kept = true, body_until = 0
        FROM unnest(bare_ids) i (id) WHERE r.id = i.id;
        RETURN QUERY SELECT NULL::text, 0::bigint, 0::bigint, cardinality(bare_ids)::bigint;
    END IF;
END
$$;

-- What each tenant takes up.
CREATE FUNCTION onceward.store_usage() RETURNS TABLE (of_tenant text, records bigint, bytes bigint)
    LANGUAGE sql VOLATILE
    AS $$ SELECT r.tenant, count(*), sum(onceward.record_bytes(r))::bigint FROM onceward.record r GROUP BY r.tenant $$;

-- Says that somebody waits for these keys for so long.
CREATE FUNCTION onceward.store_wait(w_id bytea[], span bigint) RETURNS void
    LANGUAGE sql VOLATILE
    AS $$ INSERT INTO onceward.waiter (record_id, until) SELECT w, onceward.now_us() + span FROM unnest(w_id) w ORDER BY w
        ON CONFLICT (record_id) DO UPDATE SET until = greatest(onceward.waiter.until, EXCLUDED.until) $$;

-- Writes down how late it is, so that time does not go back over restarts, and tells how the server stands. Half a
-- second of it may be lost with the server: whoever starts adds that.
CREATE FUNCTION onceward.store_tick(floor_us bigint)
    RETURNS TABLE (wall bigint, latest bigint, standby boolean, durable text, isolation text, synced text, system bigint, timeline text, open_count bigint, record_estimate bigint, bytes_estimate bigint)
    LANGUAGE plpgsql VOLATILE
    AS $$
DECLARE
    now_wall bigint := onceward.now_us();
    known bigint := coalesce((SELECT m.value::bigint FROM onceward.meta m WHERE m.name = 'clock'), 0);
    is_standby boolean := pg_is_in_recovery();
    durable_by_default text := current_setting('synchronous_commit');
BEGIN
    IF NOT is_standby AND greatest(now_wall, floor_us) > known + 500000 THEN
        PERFORM set_config('synchronous_commit', 'off', true);
        INSERT INTO onceward.meta (name, value) VALUES ('clock', greatest(now_wall, floor_us)::text)
            ON CONFLICT (name) DO UPDATE SET value = greatest(onceward.meta.value::bigint, EXCLUDED.value::bigint)::text;
        DELETE FROM onceward.waiter w WHERE w.until < now_wall;
    END IF;
    RETURN QUERY SELECT now_wall, greatest(known, floor_us), is_standby, durable_by_default,
        current_setting('transaction_isolation'), current_setting('fsync'),
        (SELECT c.system_identifier FROM pg_control_system() c),
        CASE WHEN is_standby THEN '' ELSE left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END,
        (SELECT count(*) FROM (SELECT FROM onceward.record r WHERE r.state = 1 LIMIT 10000) o),
        e.records, e.bytes
        FROM (SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint AS records,
                coalesce(sum(c.relpages), 0)::bigint * current_setting('block_size')::bigint AS bytes
            FROM pg_class c WHERE c.relnamespace = 'onceward'::regnamespace AND c.relkind = 'r'
                AND c.relname LIKE 'record\_p%') e;
END
$$;

-- Keeps the text of one policy; the 255 newest of the others stay.
CREATE FUNCTION onceward.store_keep_rules(w_policy bigint, w_text text) RETURNS void
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    PERFORM onceward.be_durable();
    INSERT INTO onceward.rules (policy, text, written_at) VALUES (w_policy, w_text, onceward.now_us())
        ON CONFLICT (policy) DO UPDATE SET text = EXCLUDED.text, written_at = EXCLUDED.written_at;
    DELETE FROM onceward.rules WHERE policy <> w_policy AND policy NOT IN (
        SELECT r.policy FROM onceward.rules r WHERE r.policy <> w_policy ORDER BY r.written_at DESC LIMIT 255);
END
$$;

-- Keeps a value unless there is one; returns the one that is kept.
CREATE FUNCTION onceward.store_remember(w_name text, w_value text) RETURNS text
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    PERFORM onceward.be_durable();
    INSERT INTO onceward.meta (name, value) VALUES (w_name, w_value) ON CONFLICT (name) DO NOTHING;
    RETURN (SELECT m.value FROM onceward.meta m WHERE m.name = w_name);
END
$$;
