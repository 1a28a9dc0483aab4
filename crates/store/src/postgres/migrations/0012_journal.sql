-- The journal of durability `journaled`: what is known of each key, the views of its partitions, and who is a member.
--
-- One lock for all of it. Whoever changes views or members holds it alone. Whoever acknowledges, ships or drains holds it
-- together with others that do, so that no view and no member changes under them. Whoever reads holds nothing, and reads in
-- one statement, so of one moment. The lock is taken before any row; rows of the journal in the order of their ids, and
-- marks after them in the order of their partitions: two calls never wait for each other in a circle.
--
-- Each call names the timeline that its caller knows, and does nothing on another. Timelines and tags are any 64 bits,
-- positions of the server's log bytes since its beginning.

-- The lives of the database: one row for each timeline of its log that somebody has looked at. Its number alone will not
-- do: a dump that was restored, or two standbys that were promoted, may have the same one.
CREATE TABLE onceward.journal_timeline (
    system bigint NOT NULL,
    number text NOT NULL,
    id bigint NOT NULL UNIQUE,
    -- The one that these tables were made on: nothing can have been lost before it.
    first boolean NOT NULL,
    PRIMARY KEY (system, number)
);

CREATE TABLE onceward.journal_view (
    partition smallint PRIMARY KEY CHECK (partition BETWEEN 0 AND 255),
    -- 0 where none was opened yet.
    number bigint NOT NULL DEFAULT 0,
    tag bigint NOT NULL DEFAULT 0,
    incarnation bytea NOT NULL DEFAULT decode(repeat('00', 20), 'hex'),
    -- On which it was opened.
    timeline bigint NOT NULL,
    active boolean NOT NULL DEFAULT false,
    -- The view that was active last, and on which timeline that was; null where none ever was.
    last_number bigint,
    last_tag bigint,
    last_incarnation bytea,
    last_timeline bigint
) WITH (fillfactor = 50);

-- Status: 1 live, 2 retiring, 3 retired.
CREATE TABLE onceward.journal_member (
    session bytea PRIMARY KEY,
    status smallint NOT NULL CHECK (status BETWEEN 1 AND 3),
    -- A position of the log at or after the commit that gave it this status; null until somebody looks, since a
    -- transaction cannot know where its own commit will lie.
    since bigint,
    heard_at bigint NOT NULL
) WITH (fillfactor = 50);
-- Those that are over stay, one for each life of a process: nobody reads them all.
CREATE INDEX journal_member_there ON onceward.journal_member (session) WHERE status < 3;
CREATE INDEX journal_member_since ON onceward.journal_member (since);

-- The view that a member acknowledged last, of each partition.
CREATE TABLE onceward.journal_acknowledged (
    session bytea NOT NULL,
    partition smallint NOT NULL,
    number bigint NOT NULL,
    tag bigint NOT NULL,
    PRIMARY KEY (session, partition)
) WITH (fillfactor = 50);

-- One row a key: of all that was said of it what is largest by fence, rank and step (in flight 1, not executed 2, settled 3,
-- erased 4; recovery points). The record is in the form of docs/record-format.md.
CREATE TABLE onceward.journal (
    id bytea PRIMARY KEY,
    partition smallint NOT NULL,
    fence bigint NOT NULL,
    rank smallint NOT NULL,
    step bigint NOT NULL,
    -- When it ends, 0: not by itself.
    keep_until bigint NOT NULL,
    -- For its index: one on `rank` would be written to with each answer.
    erased boolean NOT NULL GENERATED ALWAYS AS (rank = 4) STORED,
    record bytea NOT NULL
) WITH (fillfactor = 70);
ALTER TABLE onceward.journal ALTER COLUMN record SET STORAGE EXTERNAL;
CREATE INDEX journal_partition ON onceward.journal (partition, id);
CREATE INDEX journal_fence ON onceward.journal (partition, fence);
CREATE INDEX journal_erased ON onceward.journal (partition, id) WHERE erased;

-- The largest fence that was said of a key that has no row; of all others it is in the rows, so that shipments do not queue
-- for a mark.
CREATE TABLE onceward.journal_mark (
    partition smallint PRIMARY KEY,
    fence bigint NOT NULL
);

CREATE FUNCTION onceward.journal_random() RETURNS bigint
    LANGUAGE sql VOLATILE
    AS $$ SELECT ('x' || translate(left(gen_random_uuid()::text, 18), '-', ''))::bit(64)::bigint $$;

CREATE FUNCTION onceward.journal_flushed() RETURNS bigint
    LANGUAGE sql VOLATILE
    AS $$ SELECT (pg_current_wal_flush_lsn() - '0/0'::pg_lsn)::bigint $$;

-- The timeline of the server's log, as it writes it now; null on a standby. (A control file tells a promotion only after
-- the next checkpoint.)
CREATE FUNCTION onceward.journal_wal_timeline() RETURNS text
    LANGUAGE sql VOLATILE
    AS $$ SELECT CASE WHEN NOT pg_is_in_recovery() THEN left(pg_walfile_name(pg_current_wal_insert_lsn()), 8) END $$;

-- The database's life now; null on a standby, and where nobody has looked yet.
CREATE FUNCTION onceward.journal_timeline_now() RETURNS bigint
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    RETURN (SELECT t.id FROM onceward.journal_timeline t
        WHERE t.system = (SELECT c.system_identifier FROM pg_control_system() c) AND t.number = onceward.journal_wal_timeline());
END
$$;

INSERT INTO onceward.journal_timeline (system, number, id, first)
    SELECT c.system_identifier, onceward.journal_wal_timeline(), onceward.journal_random(), true FROM pg_control_system() c;
INSERT INTO onceward.journal_view (partition, timeline)
    SELECT partition, onceward.journal_timeline_now() FROM generate_series(0, 255) AS partition;

-- What is committed is on disk here, and on the synchronous standbys, where there are any.
CREATE FUNCTION onceward.journal_durably() RETURNS void
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    IF current_setting('synchronous_commit') NOT IN ('on', 'remote_apply') THEN
        PERFORM set_config('synchronous_commit', 'on', true);
    END IF;
END
$$;

CREATE FUNCTION onceward.journal_alone() RETURNS void
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    PERFORM onceward.journal_durably();
    PERFORM pg_advisory_xact_lock(x'6f6e63656a6f7572'::bigint);
END
$$;

CREATE FUNCTION onceward.journal_together() RETURNS void
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    PERFORM onceward.journal_durably();
    PERFORM pg_advisory_xact_lock_shared(x'6f6e63656a6f7572'::bigint);
END
$$;

-- Up to where the log is past losing, by what may take over: `none`, so it is what is on this server's disk; `asynchronous`:
-- what each of the standbys has on its disk, and nothing while one of them is not connected. `synchronous`: whoever looked
-- knows it by the commit that came back, and this says nothing.
CREATE FUNCTION onceward.journal_kept(w_failover text, w_standbys text[]) RETURNS bigint
    LANGUAGE plpgsql VOLATILE
    AS $$
DECLARE
    wanted bigint;
    flushed bigint;
BEGIN
    IF w_failover = 'none' THEN
        RETURN onceward.journal_flushed();
    ELSIF w_failover = 'asynchronous' THEN
        IF EXISTS (SELECT FROM pg_stat_replication r WHERE r.application_name = ANY (w_standbys) AND r.state IS NULL) THEN
            RAISE EXCEPTION 'how far the standbys have got is not shown to the owner of the schema onceward'
                USING ERRCODE = '42501', HINT = 'grant pg_monitor to that user';
        END IF;
        SELECT count(DISTINCT s) INTO wanted FROM unnest(w_standbys) s;
        SELECT CASE WHEN count(DISTINCT r.application_name) = wanted
            THEN min(coalesce((r.flush_lsn - '0/0'::pg_lsn)::bigint, 0)) END INTO flushed
        FROM pg_stat_replication r WHERE r.application_name = ANY (w_standbys) AND r.state IN ('catchup', 'streaming');
        RETURN coalesce(flushed, 0);
    END IF;
    RETURN 0;
END
$$;

-- Of each partition whose view waits, whether every member has acknowledged it, or is retired past losing. What is seen is committed,
-- and so on this server's disk: where it is not known where its commit lies, that is not behind what is flushed now.
CREATE FUNCTION onceward.journal_agreement(kept bigint) RETURNS TABLE (of_partition smallint, agreed boolean)
    LANGUAGE sql STABLE
    AS $$ SELECT v.partition, v.number > 0
            AND NOT EXISTS (SELECT FROM onceward.journal_member m WHERE m.status = 3
                AND (m.since > kept OR m.since IS NULL AND onceward.journal_flushed() > kept))
            AND NOT EXISTS (SELECT FROM onceward.journal_member m WHERE m.status < 3
                AND NOT EXISTS (SELECT FROM onceward.journal_acknowledged a WHERE a.session = m.session
                    AND a.partition = v.partition AND a.number = v.number AND a.tag = v.tag))
        FROM onceward.journal_view v WHERE NOT v.active $$;

-- What there is, and that this session is alive. `known` is the position that its caller knows to be past losing, on the
-- timeline `known_on`.
CREATE FUNCTION onceward.journal_look(
    w_session bytea, silence bigint, w_failover text, w_standbys text[], known_on bigint, known bigint)
    RETURNS TABLE (timeline bigint, kept bigint, me smallint, me_kept boolean, partitions smallint[], numbers bigint[],
        tags bigint[], incarnations bytea[], timelines bigint[], active boolean[], agreed boolean[], silent bytea[])
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off SET enable_seqscan = off
    AS $$
DECLARE
    timeline_now bigint := onceward.journal_timeline_now();
    kept_now bigint;
    now_us bigint := onceward.now_us();
    heard boolean;
BEGIN
    IF timeline_now IS NULL THEN
        PERFORM onceward.journal_durably();
        INSERT INTO onceward.journal_timeline (system, number, id, first)
            SELECT c.system_identifier, onceward.journal_wal_timeline(), onceward.journal_random(), false
            FROM pg_control_system() c ON CONFLICT DO NOTHING;
        timeline_now := onceward.journal_timeline_now();
    ELSIF w_failover = 'synchronous' THEN
        PERFORM onceward.journal_durably();
    ELSE
        -- Half a second of who was heard of may be lost with the server.
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    UPDATE onceward.journal_member m SET heard_at = now_us WHERE m.session = w_session;
    heard := FOUND;
    -- Never waited for, so that two who look do not wait in a circle.
    IF EXISTS (SELECT FROM onceward.journal_member m WHERE m.since IS NULL) THEN
        UPDATE onceward.journal_member m SET since = onceward.journal_flushed() WHERE m.session IN (
            SELECT u.session FROM onceward.journal_member u WHERE u.since IS NULL FOR UPDATE SKIP LOCKED);
    END IF;
    kept_now := CASE
        -- This transaction writes, and its commit comes back once the standbys have it and all that is before it.
        WHEN w_failover = 'synchronous' AND heard AND current_setting('synchronous_standby_names') <> ''
            THEN (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint
        ELSE onceward.journal_kept(w_failover, w_standbys) END;
    IF known_on = timeline_now THEN
        kept_now := greatest(kept_now, known);
    END IF;
    RETURN QUERY SELECT timeline_now, kept_now, m.status,
            coalesce(m.since <= kept_now OR m.since IS NULL AND onceward.journal_flushed() <= kept_now, false),
            v.partitions, v.numbers, v.tags, v.incarnations, v.timelines, v.active, v.agreed,
            ARRAY(SELECT s.session FROM onceward.journal_member s
                WHERE s.status < 3 AND (s.status = 2 OR s.heard_at < now_us - silence) ORDER BY s.session)
        FROM (SELECT array_agg(o.partition) AS partitions, array_agg(o.number) AS numbers, array_agg(o.tag) AS tags,
                array_agg(o.incarnation) AS incarnations, array_agg(o.timeline) AS timelines,
                array_agg(o.active) AS active, array_agg(o.agreed) AS agreed
            FROM (SELECT o.*, coalesce(a.agreed, false) AS agreed FROM onceward.journal_view o
                LEFT JOIN onceward.journal_agreement(kept_now) a ON a.of_partition = o.partition ORDER BY o.partition) o) v
        LEFT JOIN onceward.journal_member m ON m.session = w_session;
END
$$;

-- Where the log is, for whoever has just committed; null on another timeline.
CREATE FUNCTION onceward.journal_position(w_timeline bigint) RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    AS $$
BEGIN
    IF onceward.journal_timeline_now() = w_timeline THEN
        RETURN onceward.journal_flushed();
    END IF;
    RETURN NULL;
END
$$;

-- Makes the session a member, which holds nothing and so has acknowledged all views that wait.
CREATE FUNCTION onceward.journal_join(w_session bytea, w_timeline bigint) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off
    AS $$
BEGIN
    PERFORM onceward.journal_alone();
    IF onceward.journal_timeline_now() IS DISTINCT FROM w_timeline
        OR EXISTS (SELECT FROM onceward.journal_view v WHERE v.number > 0 AND v.timeline <> w_timeline) THEN
        RETURN false;
    END IF;
    INSERT INTO onceward.journal_member (session, status, heard_at) VALUES (w_session, 1, onceward.now_us())
        ON CONFLICT DO NOTHING;
    IF FOUND THEN
        INSERT INTO onceward.journal_acknowledged (session, partition, number, tag)
            SELECT w_session, v.partition, v.number, v.tag FROM onceward.journal_view v WHERE v.number > 0 AND NOT v.active;
    END IF;
    RETURN true;
END
$$;

-- Opens the next view of each partition whose view is still the one that is given with it.
CREATE FUNCTION onceward.journal_open(
    w_session bytea, w_timeline bigint, w_partition smallint[], w_number bigint[], w_tag bigint[], w_of bigint[],
    w_above bigint[], w_incarnation bytea[])
    RETURNS bigint
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off
    AS $$
DECLARE
    opened bigint;
BEGIN
    PERFORM onceward.journal_alone();
    IF onceward.journal_timeline_now() IS DISTINCT FROM w_timeline
        OR EXISTS (SELECT FROM onceward.journal_member m WHERE m.status < 3)
        AND NOT EXISTS (SELECT FROM onceward.journal_member m WHERE m.status < 3 AND m.session = w_session) THEN
        RETURN 0;
    END IF;
    UPDATE onceward.journal_view v SET number = greatest(v.number, w.above) + 1, tag = onceward.journal_random(),
        incarnation = w.incarnation, timeline = w_timeline, active = false
    FROM unnest(w_partition, w_number, w_tag, w_of, w_above, w_incarnation) AS w (partition, number, tag, of, above, incarnation)
    WHERE v.partition = w.partition AND v.number = w.number AND v.tag = w.tag AND v.timeline = w.of;
    GET DIAGNOSTICS opened = ROW_COUNT;
    RETURN opened;
END
$$;

-- All that the session was granted before is in the journal. Of which partitions that was taken.
CREATE FUNCTION onceward.journal_acknowledge(
    w_session bytea, w_timeline bigint, w_partition smallint[], w_number bigint[], w_tag bigint[])
    RETURNS smallint[]
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off
    AS $$
DECLARE
    taken smallint[];
BEGIN
    PERFORM onceward.journal_together();
    IF onceward.journal_timeline_now() = w_timeline
        AND EXISTS (SELECT FROM onceward.journal_member m WHERE m.session = w_session AND m.status = 1) THEN
        WITH noted AS (
            INSERT INTO onceward.journal_acknowledged AS a (session, partition, number, tag)
            SELECT DISTINCT w_session, v.partition, v.number, v.tag
            FROM unnest(w_partition, w_number, w_tag) AS w (partition, number, tag) JOIN onceward.journal_view v
                ON v.partition = w.partition AND v.number = w.number AND v.tag = w.tag
            WHERE NOT v.active AND v.timeline = w_timeline ORDER BY v.partition
            ON CONFLICT (session, partition) DO UPDATE SET number = EXCLUDED.number, tag = EXCLUDED.tag
            RETURNING a.partition)
        SELECT array_agg(n.partition ORDER BY n.partition) INTO taken FROM noted n;
    END IF;
    RETURN coalesce(taken, '{}');
END
$$;

-- What servers are to be given with those of the views that all have acknowledged.
CREATE FUNCTION onceward.journal_agreed(
    w_timeline bigint, w_partition smallint[], w_number bigint[], w_tag bigint[], w_failover text, w_standbys text[],
    known bigint)
    RETURNS TABLE (of_partition smallint, admitted bytea[], mark bigint, erased_ids bytea[], erased_records bytea[])
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
            greatest(0, (SELECT max(j.fence) FROM onceward.journal j WHERE j.partition = v.partition),
                (SELECT k.fence FROM onceward.journal_mark k WHERE k.partition = v.partition)),
            ARRAY(SELECT j.id FROM onceward.journal j WHERE j.partition = v.partition AND j.erased ORDER BY j.id),
            ARRAY(SELECT j.record FROM onceward.journal j WHERE j.partition = v.partition AND j.erased ORDER BY j.id)
        FROM unnest(w_partition, w_number, w_tag) AS w (partition, number, tag)
            JOIN onceward.journal_view v ON v.partition = w.partition AND v.number = w.number AND v.tag = w.tag
            JOIN onceward.journal_agreement(kept) a ON a.of_partition = v.partition AND a.agreed
        WHERE NOT v.active AND v.timeline = w_timeline;
END
$$;

-- The views have been installed: they serve, where all have acknowledged them. Of which partitions that was taken.
CREATE FUNCTION onceward.journal_activate(
    w_timeline bigint, w_partition smallint[], w_number bigint[], w_tag bigint[], w_failover text, w_standbys text[],
    known bigint)
    RETURNS smallint[]
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off SET enable_seqscan = off
    AS $$
DECLARE
    kept bigint;
    taken smallint[];
BEGIN
    PERFORM onceward.journal_alone();
    IF onceward.journal_timeline_now() = w_timeline THEN
        kept := greatest(onceward.journal_kept(w_failover, w_standbys), known);
        WITH serves AS (
            UPDATE onceward.journal_view v SET active = true, last_number = v.number, last_tag = v.tag,
                last_incarnation = v.incarnation, last_timeline = v.timeline
            FROM unnest(w_partition, w_number, w_tag) AS w (partition, number, tag)
                JOIN onceward.journal_agreement(kept) a ON a.of_partition = w.partition AND a.agreed
            WHERE v.partition = w.partition AND v.number = w.number AND v.tag = w.tag AND NOT v.active
                AND v.timeline = w_timeline
            RETURNING v.partition)
        SELECT array_agg(s.partition ORDER BY s.partition) INTO taken FROM serves s;
    END IF;
    RETURN coalesce(taken, '{}');
END
$$;

-- Merges facts, each of another key. Without `may_insert` a key that has no row gets none, only its mark.
CREATE FUNCTION onceward.journal_merge(
    may_insert boolean, w_partition smallint[], w_id bytea[], w_fence bigint[], w_rank smallint[], w_step bigint[],
    w_keep_until bigint[], w_record bytea[])
    RETURNS void
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    IF may_insert THEN
        INSERT INTO onceward.journal AS j (partition, id, fence, rank, step, keep_until, record)
            SELECT w.partition, w.id, w.fence, w.rank, w.step, w.keep_until, w.record FROM unnest(w_partition, w_id, w_fence, w_rank, w_step, w_keep_until, w_record)
                AS w (partition, id, fence, rank, step, keep_until, record)
            ORDER BY w.id
        ON CONFLICT (id) DO UPDATE SET fence = EXCLUDED.fence, rank = EXCLUDED.rank, step = EXCLUDED.step,
            keep_until = EXCLUDED.keep_until, record = EXCLUDED.record
        WHERE (j.fence, j.rank, j.step) < (EXCLUDED.fence, EXCLUDED.rank, EXCLUDED.step);
        RETURN;
    END IF;
    PERFORM FROM unnest(w_id) AS w (id) JOIN onceward.journal j ON j.id = w.id ORDER BY j.id FOR UPDATE OF j;
    UPDATE onceward.journal j SET fence = w.fence, rank = w.rank, step = w.step, keep_until = w.keep_until, record = w.record
    FROM unnest(w_partition, w_id, w_fence, w_rank, w_step, w_keep_until, w_record)
        AS w (partition, id, fence, rank, step, keep_until, record)
    WHERE j.id = w.id AND (j.fence, j.rank, j.step) < (w.fence, w.rank, w.step);
    INSERT INTO onceward.journal_mark AS k (partition, fence)
        SELECT w.partition, max(w.fence) FROM unnest(w_partition, w_fence) AS w (partition, fence)
        GROUP BY w.partition ORDER BY w.partition
    ON CONFLICT (partition) DO UPDATE SET fence = EXCLUDED.fence WHERE k.fence < EXCLUDED.fence;
END
$$;

-- Ships facts. Those of a session that is no member, or over, change rows and make none.
CREATE FUNCTION onceward.journal_ship(
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
    PERFORM onceward.journal_merge(
        EXISTS (SELECT FROM onceward.journal_member m WHERE m.session = w_session AND m.status < 3),
        w_partition, w_id, w_fence, w_rank, w_step, w_keep_until, w_record);
    RETURN true;
END
$$;

-- Ships what was found dirty in a partition's last active view, by a member that retires another.
CREATE FUNCTION onceward.journal_drain(
    by bytea, w_timeline bigint, of_partition smallint, of_number bigint, of_tag bigint, of_incarnation bytea,
    w_partition smallint[], w_id bytea[], w_fence bigint[], w_rank smallint[], w_step bigint[], w_keep_until bigint[],
    w_record bytea[])
    RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off SET enable_seqscan = off SET enable_hashjoin = off SET enable_mergejoin = off
    AS $$
BEGIN
    PERFORM onceward.journal_together();
    IF onceward.journal_timeline_now() IS DISTINCT FROM w_timeline
        OR NOT EXISTS (SELECT FROM onceward.journal_member m WHERE m.session = by AND m.status = 1)
        OR NOT EXISTS (SELECT FROM onceward.journal_view v WHERE v.partition = of_partition AND v.last_number = of_number
            AND v.last_tag = of_tag AND v.last_incarnation = of_incarnation AND v.last_timeline = w_timeline) THEN
        RETURN false;
    END IF;
    PERFORM onceward.journal_merge(true, w_partition, w_id, w_fence, w_rank, w_step, w_keep_until, w_record);
    RETURN true;
END
$$;

-- A key's row, where the view serves on the present timeline.
CREATE FUNCTION onceward.journal_row(w_partition smallint, w_number bigint, w_tag bigint, w_id bytea)
    RETURNS TABLE (serves boolean, record bytea)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET jit = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
    AS $$
DECLARE
    timeline_now bigint := onceward.journal_timeline_now();
BEGIN
    RETURN QUERY SELECT s.serves, j.record
        FROM (SELECT EXISTS (SELECT FROM onceward.journal_view v WHERE v.partition = w_partition AND v.number = w_number
            AND v.tag = w_tag AND v.active AND v.timeline = timeline_now) AS serves) s
        LEFT JOIN onceward.journal j ON s.serves AND j.id = w_id;
END
$$;

-- Rows of a partition in the order of their ids, likewise; one without id where there is none.
CREATE FUNCTION onceward.journal_rows(w_partition smallint, w_number bigint, w_tag bigint, after bytea, rows_max bigint)
    RETURNS TABLE (serves boolean, id bytea, record bytea)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET jit = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
    AS $$
DECLARE
    timeline_now bigint := onceward.journal_timeline_now();
BEGIN
    RETURN QUERY SELECT s.serves, p.id, p.record
        FROM (SELECT EXISTS (SELECT FROM onceward.journal_view v WHERE v.partition = w_partition AND v.number = w_number
            AND v.tag = w_tag AND v.active AND v.timeline = timeline_now) AS serves) s
        LEFT JOIN LATERAL (SELECT j.id, j.record FROM onceward.journal j
            WHERE s.serves AND j.partition = w_partition AND j.id > after ORDER BY j.id LIMIT rows_max) p ON true;
END
$$;

-- Rows in the order of their ids, whatever view they are of, for lists; one without id where there is none.
CREATE FUNCTION onceward.journal_list(after bytea, rows_max bigint)
    RETURNS TABLE (at bigint, id bytea, record bytea)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET jit = off SET enable_seqscan = off SET plan_cache_mode = force_generic_plan
    AS $$
BEGIN
    RETURN QUERY SELECT s.at, p.id, p.record FROM (SELECT onceward.now_us() AS at) s
        LEFT JOIN LATERAL (SELECT j.id, j.record FROM onceward.journal j
            WHERE j.id > after ORDER BY j.id LIMIT rows_max) p ON true;
END
$$;

-- A session is over. What it acknowledged counts no more.
CREATE FUNCTION onceward.journal_end(w_session bytea) RETURNS void
    LANGUAGE plpgsql VOLATILE
    AS $$
BEGIN
    UPDATE onceward.journal_member m SET status = 3, since = NULL WHERE m.session = w_session;
    DELETE FROM onceward.journal_acknowledged a WHERE a.session = w_session;
END
$$;

-- The session is over by its own word.
CREATE FUNCTION onceward.journal_leave(w_session bytea, w_timeline bigint) RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off
    AS $$
BEGIN
    PERFORM onceward.journal_alone();
    IF onceward.journal_timeline_now() IS DISTINCT FROM w_timeline THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM onceward.journal_member m WHERE m.session = w_session AND m.status < 3) THEN
        PERFORM onceward.journal_end(w_session);
    END IF;
    RETURN true;
END
$$;

-- Begins to retire a session: one row with the views that it has to be shut out of, or none where that is refused.
CREATE FUNCTION onceward.journal_retire(by bytea, target bytea, w_timeline bigint)
    RETURNS TABLE (partitions smallint[], numbers bigint[], tags bigint[], incarnations bytea[])
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off
    AS $$
BEGIN
    PERFORM onceward.journal_alone();
    IF onceward.journal_timeline_now() IS DISTINCT FROM w_timeline
        OR NOT EXISTS (SELECT FROM onceward.journal_member m WHERE m.session = by AND m.status = 1)
        OR NOT EXISTS (SELECT FROM onceward.journal_member m WHERE m.session = target AND m.status < 3)
        -- It has acknowledged a view that waits, and may be let into that.
        OR EXISTS (SELECT FROM onceward.journal_view v JOIN onceward.journal_acknowledged a ON a.session = target
            AND a.partition = v.partition AND a.number = v.number AND a.tag = v.tag WHERE v.number > 0 AND NOT v.active)
        -- What it was granted may be in a view that this life of the database does not know.
        OR EXISTS (SELECT FROM onceward.journal_view v WHERE v.last_timeline <> w_timeline)
        OR EXISTS (SELECT FROM onceward.journal_view v WHERE v.last_timeline IS NULL)
        AND NOT (SELECT t.first FROM onceward.journal_timeline t WHERE t.id = w_timeline) THEN
        RETURN;
    END IF;
    UPDATE onceward.journal_member m SET status = 2, since = NULL WHERE m.session = target AND m.status = 1;
    RETURN QUERY SELECT array_agg(v.partition), array_agg(v.last_number), array_agg(v.last_tag), array_agg(v.last_incarnation)
        FROM (SELECT v.* FROM onceward.journal_view v WHERE v.last_timeline IS NOT NULL ORDER BY v.partition) v;
END
$$;

-- The session was shut out of these views and what was dirty in them is in the journal: it is over.
CREATE FUNCTION onceward.journal_retired(
    target bytea, w_timeline bigint, w_partition smallint[], w_number bigint[], w_tag bigint[], w_incarnation bytea[])
    RETURNS boolean
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET lock_timeout = '2s' SET jit = off
    AS $$
BEGIN
    PERFORM onceward.journal_alone();
    IF onceward.journal_timeline_now() IS DISTINCT FROM w_timeline
        OR EXISTS (SELECT FROM unnest(w_partition, w_number, w_tag, w_incarnation) AS w (partition, number, tag, incarnation)
            WHERE NOT EXISTS (SELECT FROM onceward.journal_view v WHERE v.partition = w.partition
                AND v.last_number = w.number AND v.last_tag = w.tag AND v.last_incarnation = w.incarnation
                AND v.last_timeline = w_timeline)) THEN
        RETURN false;
    END IF;
    IF EXISTS (SELECT FROM onceward.journal_member m WHERE m.session = target AND m.status = 2) THEN
        PERFORM onceward.journal_end(target);
    END IF;
    RETURN true;
END
$$;

-- They run with the rights of the schema's owner: gateways call them and read none of the tables.
DO $$
BEGIN
    EXECUTE (SELECT 'REVOKE ALL ON FUNCTION ' || string_agg(p.oid::regprocedure::text, ', ') || ' FROM PUBLIC' FROM pg_proc p
        WHERE p.pronamespace = 'onceward'::regnamespace AND p.proname LIKE 'journal\_%');
END
$$;
SELECT onceward.grant_roles();
