-- What is in flight is looked through again and again for outcomes that nobody knows, and is little of all that there is. Of
-- rows that were shipped while in flight the end is one more entry of each index.
CREATE INDEX journal_in_flight ON onceward.journal (id) WHERE rank = 1;

-- As journal_list, of what is in flight.
CREATE FUNCTION onceward.journal_in_flight(after bytea, rows_max bigint)
    RETURNS TABLE (at bigint, id bytea, record bytea)
    LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = onceward, pg_catalog, pg_temp
    SET jit = off SET enable_seqscan = off SET enable_sort = off SET plan_cache_mode = force_generic_plan
    AS $$
BEGIN
    RETURN QUERY SELECT s.at, p.id, p.record FROM (SELECT onceward.now_us() AS at) s
        LEFT JOIN LATERAL (SELECT j.id, j.record FROM onceward.journal j
            WHERE j.rank = 1 AND j.id > after ORDER BY j.id LIMIT rows_max) p ON true;
END
$$;

REVOKE ALL ON FUNCTION onceward.journal_in_flight FROM PUBLIC;
SELECT onceward.grant_roles();
