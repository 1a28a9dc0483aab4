-- How the views stand, for people: of each partition whether its view serves, and which members it waits for.
CREATE FUNCTION onceward.journal_views()
    RETURNS TABLE (of_partition smallint, number bigint, active boolean, of_this_life boolean, waits_for bytea[])
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp SET jit = off
    AS $$
DECLARE
    timeline_now bigint := onceward.journal_timeline_now();
BEGIN
    RETURN QUERY SELECT v.partition, v.number, v.active, v.timeline IS NOT DISTINCT FROM timeline_now,
            CASE WHEN v.active OR v.number = 0 THEN '{}' ELSE ARRAY(SELECT m.session FROM onceward.journal_member m
                WHERE m.status < 3 AND NOT EXISTS (SELECT FROM onceward.journal_acknowledged a WHERE a.session = m.session
                    AND a.partition = v.partition AND a.number = v.number AND a.tag = v.tag) ORDER BY m.session) END
        FROM onceward.journal_view v ORDER BY v.partition;
END
$$;

-- Who is a member, how long ago each was heard of, and whether a failover may still lose that it is one: until then nothing is
-- granted to it. With `synchronous` that is known to whoever committed it.
CREATE FUNCTION onceward.journal_members(w_failover text, w_standbys text[])
    RETURNS TABLE (of_session bytea, retiring boolean, silent_for bigint, may_be_lost boolean)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp SET jit = off
    AS $$
DECLARE
    kept bigint := onceward.journal_kept(w_failover, w_standbys);
BEGIN
    RETURN QUERY SELECT m.session, m.status = 2, greatest(0, onceward.now_us() - m.heard_at),
            w_failover <> 'synchronous' AND NOT coalesce(m.since <= kept, false)
        FROM onceward.journal_member m WHERE m.status < 3 ORDER BY m.session;
END
$$;

REVOKE ALL ON FUNCTION onceward.journal_views, onceward.journal_members FROM PUBLIC;
SELECT onceward.grant_roles();
