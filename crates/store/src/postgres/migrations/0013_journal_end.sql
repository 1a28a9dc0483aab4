-- Of what is said of a key at one fence, rank and step the later end counts: each replay of a route whose retention slides
-- says a later one, of an answer that stays what it is.
CREATE OR REPLACE FUNCTION onceward.journal_merge(
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
        WHERE (j.fence, j.rank, j.step, j.keep_until) < (EXCLUDED.fence, EXCLUDED.rank, EXCLUDED.step, EXCLUDED.keep_until);
        RETURN;
    END IF;
    PERFORM FROM unnest(w_id) AS w (id) JOIN onceward.journal j ON j.id = w.id ORDER BY j.id FOR UPDATE OF j;
    UPDATE onceward.journal j SET fence = w.fence, rank = w.rank, step = w.step, keep_until = w.keep_until, record = w.record
    FROM unnest(w_partition, w_id, w_fence, w_rank, w_step, w_keep_until, w_record)
        AS w (partition, id, fence, rank, step, keep_until, record)
    WHERE j.id = w.id AND (j.fence, j.rank, j.step, j.keep_until) < (w.fence, w.rank, w.step, w.keep_until);
    INSERT INTO onceward.journal_mark AS k (partition, fence)
        SELECT w.partition, max(w.fence) FROM unnest(w_partition, w_fence) AS w (partition, fence)
        GROUP BY w.partition ORDER BY w.partition
    ON CONFLICT (partition) DO UPDATE SET fence = EXCLUDED.fence WHERE k.fence < EXCLUDED.fence;
END
$$;
