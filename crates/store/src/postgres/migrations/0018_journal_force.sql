-- What an operator decides where a gateway is gone with its disk, and the Redis that granted to it, too: nobody knows what it was
-- granted last, and views wait for its word for ever. They are made to go on without it. What it may have executed is not known
-- from then on, so each key that is granted in them may have been executed before, and is at risk.

CREATE TABLE onceward.journal_force (
    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    session bytea NOT NULL,
    at bigint NOT NULL,
    -- When the session was heard of last.
    heard_at bigint NOT NULL,
    -- When the retention is over of what it can have been granted.
    ends_at bigint NOT NULL,
    -- Above every fence that it can have been granted.
    mark bigint NOT NULL,
    partitions smallint[] NOT NULL
);
CREATE INDEX journal_force_session ON onceward.journal_force (session);

-- What such a session is found to have been granted, where its disk turns up after all, and the journal did not have it: a key
-- that was granted again since was granted twice.
CREATE TABLE onceward.journal_found (
    id bytea NOT NULL,
    fence bigint NOT NULL,
    -- Whether it is known to have been executed: there is an answer. Otherwise it may have been.
    executed boolean NOT NULL,
    force bigint NOT NULL REFERENCES onceward.journal_force ON DELETE CASCADE,
    PRIMARY KEY (force, id, fence)
);

-- Has the views that wait for a session go on without it, unless `w_try` only asks which these are. `said`: 0 done (or so many
-- would), 1 it is no member, 2 it was heard of within `silence`, 3 no view waits for it, 4 views were opened before the database
-- failed over, and a member is there who opens the next ones first. Where none is, nobody could, or join to do so: they are opened
-- here. What it may have been granted is kept for `keeps`, and no server's clock is further than `differ` from this one's.
--
-- It counts as having acknowledged them, and as being retired, so that it is let into none. Views that do not wait for it are
-- left as they are: the others retire it from those in the usual way, once these serve.
CREATE FUNCTION onceward.journal_force(w_session bytea, silence bigint, keeps bigint, differ bigint, w_try boolean)
    RETURNS TABLE (said smallint, silent_for bigint, of_partitions smallint[])
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off SET enable_seqscan = off
    AS $$
DECLARE
    now_us bigint := onceward.now_us();
    timeline_now bigint := onceward.journal_timeline_now();
    heard bigint;
    -- Of an earlier life of the database, and of this one.
    old smallint[];
    waiting smallint[];
    above bigint;
BEGIN
    PERFORM onceward.journal_alone();
    SELECT m.heard_at INTO heard FROM onceward.journal_member m WHERE m.session = w_session AND m.status < 3;
    IF heard IS NULL THEN
        RETURN QUERY SELECT 1::smallint, NULL::bigint, '{}'::smallint[];
        RETURN;
    END IF;
    SELECT coalesce(array_agg(v.partition), '{}') INTO old FROM onceward.journal_view v
        WHERE v.number > 0 AND v.timeline IS DISTINCT FROM timeline_now;
    SELECT coalesce(array_agg(v.partition ORDER BY v.partition), '{}') INTO waiting FROM onceward.journal_view v
        WHERE v.partition = ANY (old) OR v.number > 0 AND NOT v.active
            AND NOT EXISTS (SELECT FROM onceward.journal_acknowledged a WHERE a.session = w_session
                AND a.partition = v.partition AND a.number = v.number AND a.tag = v.tag);
    IF heard > now_us - silence THEN
        RETURN QUERY SELECT 2::smallint, now_us - heard, waiting;
    ELSIF old <> '{}' AND (timeline_now IS NULL OR EXISTS (SELECT FROM onceward.journal_member m
        WHERE m.status < 3 AND m.session <> w_session AND m.heard_at > now_us - silence)) THEN
        RETURN QUERY SELECT 4::smallint, now_us - heard, waiting;
    ELSIF waiting = '{}' THEN
        RETURN QUERY SELECT 3::smallint, now_us - heard, waiting;
    ELSE
        RETURN QUERY SELECT 0::smallint, now_us - heard, waiting;
        IF w_try THEN
            RETURN;
        END IF;
        -- It was granted none above its server's clock, or above what was known of the partitions.
        SELECT greatest(now_us + differ, max(k.fence), max(k.horizon),
                max((SELECT max(j.fence) FROM onceward.journal j WHERE j.partition = k.partition))) INTO above
            FROM onceward.journal_mark k WHERE k.partition = ANY (waiting);
        UPDATE onceward.journal_view v SET number = v.number + 1, tag = onceward.journal_random(), timeline = timeline_now, active = false
            WHERE v.partition = ANY (old);
        INSERT INTO onceward.journal_force (session, at, heard_at, ends_at, mark, partitions)
            VALUES (w_session, now_us, heard, now_us + keeps, above, waiting);
        UPDATE onceward.journal_mark k SET fence = above WHERE k.partition = ANY (waiting);
        UPDATE onceward.journal_member m SET status = 2, since = NULL WHERE m.session = w_session AND m.status = 1;
        INSERT INTO onceward.journal_acknowledged AS a (session, partition, number, tag)
            SELECT w_session, v.partition, v.number, v.tag FROM onceward.journal_view v WHERE v.partition = ANY (waiting)
        ON CONFLICT (session, partition) DO UPDATE SET number = EXCLUDED.number, tag = EXCLUDED.tag;
    END IF;
END
$$;

-- What was decided so, and is not over yet; how many keys are known to have been granted twice.
CREATE FUNCTION onceward.journal_forced()
    RETURNS TABLE (number bigint, session bytea, ago bigint, silent_before bigint, ends_in bigint, mark bigint, partitions smallint[], twice bigint)
    LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp SET jit = off SET enable_seqscan = off
    AS $$ SELECT f.number, f.session, onceward.now_us() - f.at, f.at - f.heard_at, f.ends_at - onceward.now_us(), f.mark, f.partitions,
            (SELECT count(DISTINCT l.id) FROM onceward.journal_found l JOIN onceward.journal j ON j.id = l.id
                WHERE l.force = f.number AND j.fence > f.mark AND j.rank <> 2)
        FROM onceward.journal_force f WHERE f.ends_at > onceward.now_us() ORDER BY f.number $$;

-- Keys at risk by one of these decisions, in the order of partition, fence and id, after those that are given: what was granted
-- in its partitions since and was not released, and where it is known that the session had been granted the key, too, under which
-- fence, and whether that was executed. Partition by partition, each from where the index says, however many there are.
CREATE FUNCTION onceward.journal_at_risk(w_number bigint, w_partition smallint, w_fence bigint, w_id bytea, rows_max bigint)
    RETURNS TABLE (of_partition smallint, fence bigint, id bytea, record bytea, first bigint, executed boolean)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET jit = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
    AS $$
DECLARE
    decision onceward.journal_force;
    of smallint;
    place bigint;
    told bigint;
    wanted bigint := rows_max;
BEGIN
    SELECT f.* INTO decision FROM onceward.journal_force f WHERE f.number = w_number;
    FOR of IN SELECT p FROM unnest(decision.partitions) p WHERE p >= w_partition ORDER BY p LOOP
        place := CASE WHEN of = w_partition THEN w_fence ELSE decision.mark + 1 END;
        RETURN QUERY SELECT j.partition, j.fence, j.id, j.record, l.fence, l.executed
            FROM onceward.journal j LEFT JOIN LATERAL (SELECT l.fence, l.executed FROM onceward.journal_found l
                WHERE l.force = w_number AND l.id = j.id ORDER BY l.executed DESC, l.fence DESC LIMIT 1) l ON true
            WHERE j.partition = of AND j.fence >= place AND j.rank <> 2 AND (of <> w_partition OR (j.fence, j.id) > (w_fence, w_id))
            ORDER BY j.fence, j.id LIMIT wanted;
        GET DIAGNOSTICS told = ROW_COUNT;
        wanted := wanted - told;
        EXIT WHEN wanted <= 0;
    END LOOP;
END
$$;

-- Ships facts, as before; of a session that views went on without, notes what the journal did not have.
CREATE OR REPLACE FUNCTION onceward.journal_ship(
    w_session bytea, w_timeline bigint, w_partition smallint[], w_id bytea[], w_fence bigint[], w_rank smallint[],
    w_step bigint[], w_keep_until bigint[], w_record bytea[])
    RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
BEGIN
    PERFORM onceward.journal_together();
    IF onceward.journal_timeline_now() IS DISTINCT FROM w_timeline THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM onceward.journal_force f WHERE f.session = w_session) THEN
        INSERT INTO onceward.journal_found AS l (id, fence, executed, force)
            SELECT w.id, w.fence, w.rank > 2, f.number
            FROM unnest(w_partition, w_id, w_fence, w_rank) AS w (partition, id, fence, rank)
                JOIN onceward.journal_force f ON f.session = w_session AND w.partition = ANY (f.partitions) AND w.fence <= f.mark
                LEFT JOIN onceward.journal j ON j.id = w.id
            WHERE w.rank <> 2 AND (j.id IS NULL OR j.fence < w.fence OR j.fence > f.mark)
            ORDER BY f.number, w.id, w.fence
        ON CONFLICT (force, id, fence) DO UPDATE SET executed = l.executed OR EXCLUDED.executed;
        -- In flight when it was shipped first, and not executed.
        DELETE FROM onceward.journal_found l USING unnest(w_id, w_fence, w_rank) AS w (id, fence, rank)
            WHERE l.id = w.id AND l.fence = w.fence AND w.rank = 2;
    END IF;
    PERFORM onceward.journal_merge(
        EXISTS (SELECT FROM onceward.journal_member m WHERE m.session = w_session AND m.status < 3),
        w_partition, w_id, w_fence, w_rank, w_step, w_keep_until, w_record);
    RETURN true;
END
$$;

REVOKE ALL ON FUNCTION onceward.journal_force, onceward.journal_forced, onceward.journal_at_risk FROM PUBLIC;
SELECT onceward.grant_roles();
