-- How the journal is rid of what has ended. A row that is gone must not come back as less than it was, so each partition has a
-- horizon: all that was said of keys up to that fence is in the journal, or was there and has ended. Whoever is in the view
-- that serves raises it by what Redis has that is not in the journal yet. It is raised by who holds the lock alone, so that no
-- shipment is under way that looked at the one before.
ALTER TABLE onceward.journal_mark ADD COLUMN horizon bigint NOT NULL DEFAULT 0;
INSERT INTO onceward.journal_mark (partition, fence) SELECT p, 0 FROM generate_series(0, 255) AS p ON CONFLICT DO NOTHING;

-- From when on a row counts no more: when it ends, or at once where it was released (its count of attempts, at byte 52 of the
-- record, is none); null where it does not end by itself.
CREATE FUNCTION onceward.journal_over(rank smallint, keep_until bigint, record bytea) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT CASE WHEN rank = 1 THEN NULL
        WHEN rank = 2 AND substring(record, 53, 4) = '\x00000000'::bytea THEN 0
        ELSE nullif(keep_until, 0) END $$;
CREATE INDEX journal_over ON onceward.journal (partition, onceward.journal_over(rank, keep_until, record)) WHERE rank > 1;

-- Facts that are not settled and not above the horizon change rows and make none.
CREATE OR REPLACE FUNCTION onceward.journal_merge(
    may_insert boolean, w_partition smallint[], w_id bytea[], w_fence bigint[], w_rank smallint[], w_step bigint[],
    w_keep_until bigint[], w_record bytea[])
    RETURNS void
    LANGUAGE plpgsql VOLATILE
    AS $$
DECLARE
    has_others boolean := true;
BEGIN
    IF may_insert THEN
        has_others := EXISTS (SELECT FROM unnest(w_partition, w_fence, w_rank) AS w (partition, fence, rank)
            JOIN onceward.journal_mark k ON k.partition = w.partition WHERE w.rank < 3 AND w.fence <= k.horizon);
    END IF;
    IF has_others THEN
        PERFORM FROM unnest(w_id) AS w (id) JOIN onceward.journal j ON j.id = w.id ORDER BY j.id FOR UPDATE OF j;
    END IF;
    IF may_insert THEN
        INSERT INTO onceward.journal AS j (partition, id, fence, rank, step, keep_until, record)
            SELECT w.partition, w.id, w.fence, w.rank, w.step, w.keep_until, w.record FROM unnest(w_partition, w_id, w_fence, w_rank, w_step, w_keep_until, w_record)
                AS w (partition, id, fence, rank, step, keep_until, record)
            WHERE NOT has_others OR w.rank > 2 OR w.fence > (SELECT k.horizon FROM onceward.journal_mark k WHERE k.partition = w.partition)
            ORDER BY w.id
        ON CONFLICT (id) DO UPDATE SET fence = EXCLUDED.fence, rank = EXCLUDED.rank, step = EXCLUDED.step,
            keep_until = EXCLUDED.keep_until, record = EXCLUDED.record
        WHERE (j.fence, j.rank, j.step, j.keep_until) < (EXCLUDED.fence, EXCLUDED.rank, EXCLUDED.step, EXCLUDED.keep_until);
    END IF;
    IF has_others THEN
        UPDATE onceward.journal j SET fence = w.fence, rank = w.rank, step = w.step, keep_until = w.keep_until, record = w.record
        FROM unnest(w_partition, w_id, w_fence, w_rank, w_step, w_keep_until, w_record)
            AS w (partition, id, fence, rank, step, keep_until, record)
        WHERE j.id = w.id AND (j.fence, j.rank, j.step, j.keep_until) < (w.fence, w.rank, w.step, w.keep_until);
        UPDATE onceward.journal_mark k SET fence = w.fence
        FROM (SELECT w.partition, max(w.fence) AS fence FROM unnest(w_partition, w_fence) AS w (partition, fence)
            GROUP BY w.partition) w
        WHERE k.partition = w.partition AND k.fence < w.fence;
    END IF;
END
$$;

-- Raises horizons, each where the view that it was seen in serves. How many are higher now.
CREATE FUNCTION onceward.journal_raise(
    w_timeline bigint, w_partition smallint[], w_number bigint[], w_tag bigint[], w_fence bigint[])
    RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off
    AS $$
DECLARE
    raised bigint;
BEGIN
    PERFORM onceward.journal_alone();
    IF onceward.journal_timeline_now() IS DISTINCT FROM w_timeline THEN
        RETURN 0;
    END IF;
    UPDATE onceward.journal_mark k SET horizon = w.fence
    FROM unnest(w_partition, w_number, w_tag, w_fence) AS w (partition, number, tag, fence)
        JOIN onceward.journal_view v ON v.partition = w.partition AND v.number = w.number AND v.tag = w.tag
    WHERE k.partition = w.partition AND k.horizon < w.fence AND v.active AND v.timeline = w_timeline;
    GET DIAGNOSTICS raised = ROW_COUNT;
    RETURN raised;
END
$$;

-- Removes rows that count no more since `waits`, up to the horizons. How many, and of which partitions there are some above.
-- Begins with another partition each time, so that none waits for the others.
CREATE FUNCTION onceward.journal_sweep(rows_max bigint, waits bigint) RETURNS TABLE (removed bigint, above smallint[])
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
    SELECT (SELECT count(*) FROM gone), ARRAY(SELECT DISTINCT o.partition FROM over o WHERE NOT o.below);
END
$$;

DROP FUNCTION onceward.journal_agreed;
-- What servers are to be given with those of the views that all have acknowledged.
CREATE FUNCTION onceward.journal_agreed(
    w_timeline bigint, w_partition smallint[], w_number bigint[], w_tag bigint[], w_failover text, w_standbys text[],
    known bigint)
    RETURNS TABLE (of_partition smallint, admitted bytea[], mark bigint, erased_ids bytea[], erased_records bytea[], horizon bigint)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET jit = off SET enable_seqscan = off
    AS $$
DECLARE
    kept bigint;
BEGIN
    IF onceward.journal_timeline_now() IS DISTINCT FROM w_timeline THEN
        RETURN;
    END IF;
    kept := greatest(onceward.journal_kept(w_failover, w_standbys), known);
    RETURN QUERY SELECT v.partition,
            ARRAY(SELECT m.session FROM onceward.journal_member m WHERE m.status = 1
                AND (m.since <= kept OR m.since IS NULL AND onceward.journal_flushed() <= kept) ORDER BY m.session),
            greatest(0, (SELECT max(j.fence) FROM onceward.journal j WHERE j.partition = v.partition), k.fence, k.horizon),
            ARRAY(SELECT j.id FROM onceward.journal j WHERE j.partition = v.partition AND j.erased ORDER BY j.id),
            ARRAY(SELECT j.record FROM onceward.journal j WHERE j.partition = v.partition AND j.erased ORDER BY j.id),
            k.horizon
        FROM unnest(w_partition, w_number, w_tag) AS w (partition, number, tag)
            JOIN onceward.journal_view v ON v.partition = w.partition AND v.number = w.number AND v.tag = w.tag
            JOIN onceward.journal_agreement(kept) a ON a.of_partition = v.partition AND a.agreed
            JOIN onceward.journal_mark k ON k.partition = v.partition
        WHERE NOT v.active AND v.timeline = w_timeline;
END
$$;

REVOKE ALL ON FUNCTION onceward.journal_over, onceward.journal_raise, onceward.journal_sweep, onceward.journal_agreed FROM PUBLIC;
SELECT onceward.grant_roles();
