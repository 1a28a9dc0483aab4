-- Views on the database itself, for the time in which nobody reaches Redis: a step there is one transaction on the key's row.
-- What a step makes of the row is decided by who takes it; here it is compared and set, in the view that it names.

-- The servers that a member does not reach, and when it said so.
ALTER TABLE onceward.journal_member ADD COLUMN unreached smallint[] NOT NULL DEFAULT '{}', ADD COLUMN unreached_at bigint NOT NULL DEFAULT 0;

-- Takes a session's word on which servers it does not reach, and answers which nobody reaches, of those who were heard of within
-- `heard_within`, and which some do not: of whom nothing was heard it is not known that they reach any.
CREATE FUNCTION onceward.journal_unreached(w_session bytea, w_partition smallint[], heard_within bigint)
    RETURNS TABLE (by_all smallint[], by_some smallint[])
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off SET enable_seqscan = off
    AS $$
DECLARE
    now_us bigint := onceward.now_us();
BEGIN
    -- It is said again soon.
    PERFORM set_config('synchronous_commit', 'off', true);
    UPDATE onceward.journal_member m SET unreached = w_partition, unreached_at = now_us, heard_at = greatest(m.heard_at, now_us)
        WHERE m.session = w_session AND m.status < 3;
    RETURN QUERY WITH there AS MATERIALIZED (
            SELECT m.session, CASE WHEN m.unreached_at >= now_us - heard_within THEN m.unreached ELSE '{}' END AS unreached
            FROM onceward.journal_member m WHERE m.status < 3 AND m.status = 1 AND m.heard_at >= now_us - heard_within),
        said AS (SELECT p, count(*) AS by FROM there t, unnest(t.unreached) p GROUP BY p)
    SELECT ARRAY(SELECT s.p FROM said s WHERE s.by = (SELECT count(*) FROM there) ORDER BY s.p),
        ARRAY(SELECT v.partition FROM onceward.journal_view v WHERE v.partition IN (SELECT s.p FROM said s)
            OR EXISTS (SELECT FROM onceward.journal_member m WHERE m.status < 3 AND m.heard_at < now_us - heard_within)
            ORDER BY v.partition);
END
$$;

-- The rows of keys as they are, the time, and a fence that none is above whose row is gone; `serves` is whether the view that is
-- given with the key is active, on the present timeline, and the session a live member. `floor_us` is the latest time that the
-- caller knows: it does not go back behind that.
CREATE FUNCTION onceward.journal_here(
    floor_us bigint, w_id bytea[], w_partition smallint[], w_number bigint[], w_tag bigint[], w_session bytea[])
    RETURNS TABLE (item bytea, serves boolean, at bigint, mark bigint, record bytea)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET plan_cache_mode = force_generic_plan
    AS $$
DECLARE
    timeline_now bigint := onceward.journal_timeline_now();
    now_us bigint := greatest(onceward.now_us(), floor_us);
BEGIN
    RETURN QUERY SELECT w.id,
            EXISTS (SELECT FROM onceward.journal_view v WHERE v.partition = w.partition AND v.number = w.number
                AND v.tag = w.tag AND v.active AND v.timeline = timeline_now)
            AND EXISTS (SELECT FROM onceward.journal_member m WHERE m.session = w.session AND m.status = 1),
            now_us, greatest(k.fence, k.horizon), j.record
        FROM unnest(w_id, w_partition, w_number, w_tag, w_session) AS w (id, partition, number, tag, session)
            LEFT JOIN onceward.journal_mark k ON k.partition = w.partition
            LEFT JOIN onceward.journal j ON j.id = w.id;
END
$$;

-- Puts records in the place of rows that are still as they were: each begins with `was`, which has its fence and its revision;
-- of a key that had none it is empty. Of each key 1 where that was done, 0 where its view does not serve, 2 where the row has
-- changed. Those who wait for the keys are told.
CREATE FUNCTION onceward.journal_put(
    w_id bytea[], w_partition smallint[], w_number bigint[], w_tag bigint[], w_session bytea[], w_was bytea[],
    w_fence bigint[], w_rank smallint[], w_step bigint[], w_keep_until bigint[], w_record bytea[])
    RETURNS TABLE (item bytea, said smallint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET plan_cache_mode = force_generic_plan
    AS $$
DECLARE
    timeline_now bigint;
    serving bytea[];
    put bytea[];
    made bytea[];
BEGIN
    -- From here on no view and no member changes.
    PERFORM onceward.journal_together();
    timeline_now := onceward.journal_timeline_now();
    SELECT coalesce(array_agg(w.id), '{}') INTO serving
    FROM unnest(w_id, w_partition, w_number, w_tag, w_session) AS w (id, partition, number, tag, session)
    WHERE EXISTS (SELECT FROM onceward.journal_view v WHERE v.partition = w.partition AND v.number = w.number
            AND v.tag = w.tag AND v.active AND v.timeline = timeline_now)
        AND EXISTS (SELECT FROM onceward.journal_member m WHERE m.session = w.session AND m.status = 1);
    -- Rows that are there first, then those that are made, each in the order of the ids.
    PERFORM FROM unnest(w_id, w_was) AS w (id, was) JOIN onceward.journal j ON j.id = w.id WHERE w.was <> '' ORDER BY j.id FOR UPDATE OF j;
    WITH changed AS (
        UPDATE onceward.journal j SET fence = w.fence, rank = w.rank, step = w.step, keep_until = w.keep_until, record = w.record
        FROM unnest(w_id, w_was, w_fence, w_rank, w_step, w_keep_until, w_record)
            AS w (id, was, fence, rank, step, keep_until, record)
        WHERE j.id = w.id AND w.was <> '' AND w.id = ANY (serving) AND substring(j.record, 1, octet_length(w.was)) = w.was
        RETURNING j.id)
    SELECT coalesce(array_agg(c.id), '{}') INTO put FROM changed c;
    WITH fresh AS (
        INSERT INTO onceward.journal (partition, id, fence, rank, step, keep_until, record)
        SELECT w.partition, w.id, w.fence, w.rank, w.step, w.keep_until, w.record
        FROM unnest(w_id, w_partition, w_was, w_fence, w_rank, w_step, w_keep_until, w_record)
            AS w (id, partition, was, fence, rank, step, keep_until, record)
        WHERE w.was = '' AND w.id = ANY (serving)
            AND w.fence > (SELECT k.horizon FROM onceward.journal_mark k WHERE k.partition = w.partition)
        ORDER BY w.id
        ON CONFLICT (id) DO NOTHING
        RETURNING id)
    SELECT coalesce(array_agg(f.id), '{}') INTO made FROM fresh f;
    PERFORM onceward.tell(put);
    PERFORM pg_notify('onceward.forgotten', encode(w.id, 'hex')) FROM unnest(w_id, w_rank) AS w (id, rank)
        WHERE w.rank = 4 AND w.id = ANY (put);
    RETURN QUERY SELECT w.id, (CASE WHEN w.id = ANY (put) OR w.id = ANY (made) THEN 1
        WHEN w.id = ANY (serving) THEN 2 ELSE 0 END)::smallint FROM unnest(w_id) AS w (id);
END
$$;

-- As before, and the partitions that have some above their horizons in the order in which they were looked at: another one is
-- the first each time, so that all come to have theirs raised.
CREATE OR REPLACE FUNCTION onceward.journal_sweep(rows_max bigint, waits bigint) RETURNS TABLE (removed bigint, above smallint[])
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    SET plan_cache_mode = force_generic_plan
    AS $$
DECLARE
    before bigint := onceward.now_us() - waits;
    begins_with integer := floor(random() * 256);
BEGIN
    PERFORM onceward.journal_together();
    RETURN QUERY WITH over AS MATERIALIZED (
        SELECT o.id, o.partition, o.fence <= k.horizon AS below
        FROM (SELECT m.* FROM onceward.journal_mark m ORDER BY (m.partition + begins_with) % 256) k
            CROSS JOIN LATERAL (SELECT j.id, j.partition, j.fence FROM onceward.journal j
                WHERE j.partition = k.partition AND j.rank > 1
                    AND onceward.journal_over(j.rank, j.keep_until, j.record) <= before
                ORDER BY onceward.journal_over(j.rank, j.keep_until, j.record) LIMIT rows_max) o
        LIMIT rows_max),
    -- A key may have been claimed again meanwhile.
    locked AS MATERIALIZED (
        SELECT j.id FROM over o JOIN onceward.journal j ON j.id = o.id JOIN onceward.journal_mark k ON k.partition = j.partition
        WHERE o.below AND j.rank > 1 AND onceward.journal_over(j.rank, j.keep_until, j.record) <= before AND j.fence <= k.horizon
        FOR UPDATE OF j SKIP LOCKED),
    gone AS (DELETE FROM onceward.journal j USING locked l WHERE j.id = l.id RETURNING j.id)
    SELECT (SELECT count(*) FROM gone), ARRAY(SELECT o.partition FROM over o WHERE NOT o.below
        GROUP BY o.partition ORDER BY (o.partition + begins_with) % 256);
END
$$;

-- As before, and which views are on the database itself; and of how many partitions a member does not reach the server, as far
-- as it has said so within two seconds.
DROP FUNCTION onceward.journal_views, onceward.journal_members;
CREATE FUNCTION onceward.journal_views()
    RETURNS TABLE (of_partition smallint, number bigint, active boolean, of_this_life boolean, waits_for bytea[], on_database boolean)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp SET jit = off
    AS $$
DECLARE
    timeline_now bigint := onceward.journal_timeline_now();
BEGIN
    RETURN QUERY SELECT v.partition, v.number, v.active, v.timeline IS NOT DISTINCT FROM timeline_now,
            CASE WHEN v.active OR v.number = 0 THEN '{}' ELSE ARRAY(SELECT m.session FROM onceward.journal_member m
                WHERE m.status < 3 AND NOT EXISTS (SELECT FROM onceward.journal_acknowledged a WHERE a.session = m.session
                    AND a.partition = v.partition AND a.number = v.number AND a.tag = v.tag) ORDER BY m.session) END,
            v.incarnation = decode(repeat('ff', 20), 'hex')
        FROM onceward.journal_view v ORDER BY v.partition;
END
$$;
CREATE FUNCTION onceward.journal_members(w_failover text, w_standbys text[])
    RETURNS TABLE (of_session bytea, retiring boolean, silent_for bigint, may_be_lost boolean, unreached bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp SET jit = off
    AS $$
DECLARE
    kept bigint := onceward.journal_kept(w_failover, w_standbys);
BEGIN
    RETURN QUERY SELECT m.session, m.status = 2, greatest(0, onceward.now_us() - m.heard_at),
            w_failover <> 'synchronous' AND NOT coalesce(m.since <= kept, false),
            CASE WHEN m.unreached_at > onceward.now_us() - 2000000 THEN cardinality(m.unreached) ELSE 0 END::bigint
        FROM onceward.journal_member m WHERE m.status < 3 ORDER BY m.session;
END
$$;

REVOKE ALL ON FUNCTION onceward.journal_views, onceward.journal_members FROM PUBLIC;
REVOKE ALL ON FUNCTION onceward.journal_unreached, onceward.journal_here, onceward.journal_put FROM PUBLIC;
SELECT onceward.grant_roles();
