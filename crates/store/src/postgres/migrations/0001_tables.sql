-- The tables that every Onceward process on this database shares, the SQL functions included.
--
-- Times are microseconds since the Unix epoch on this server's clock, 0 for "never"; what is unsigned elsewhere is a
-- bigint here. Columns are typed, so that SQL reads a record without any code of ours.

-- Microseconds of the server's clock now, not of the transaction's start: what was read after a lock wait is dated
-- after it. Simple enough to be put in the place of its call.
CREATE FUNCTION onceward.now_us() RETURNS bigint
    LANGUAGE sql VOLATILE PARALLEL SAFE
    AS $$ SELECT round(date_part('epoch', clock_timestamp()) * 1000000)::bigint $$;

-- One row a key. The states are those of the core: 1 in flight, 2 not executed, 3 completed, 4 failed, 5 erased.
-- No column that a renewal changes is in an index, so that renewals stay within their page. No constraint checks what the
-- steps write: each would be prepared anew for each partition that a batch of claims meets, which took a third of its
-- time. Whoever reads a record finds out (row.rs).
CREATE TABLE onceward.record (
    id bytea NOT NULL,
    -- The store's own block.
    fence bigint NOT NULL,
    revision bigint NOT NULL,
    lease_until bigint NOT NULL,
    keep_until bigint NOT NULL,
    written_at bigint NOT NULL,
    -- What is known of the key's execution.
    state smallint NOT NULL,
    dispatched boolean NOT NULL,
    ambiguous boolean NOT NULL,
    attempt bigint NOT NULL,
    claim_id bytea NOT NULL,
    session bytea NOT NULL,
    principal_proof bytea,
    fingerprint_policy bigint NOT NULL,
    fingerprint bytea NOT NULL,
    -- Digests of eight bytes, one after another.
    fields bytea NOT NULL,
    route text NOT NULL,
    tenant text NOT NULL,
    env text NOT NULL,
    claimed_at bigint NOT NULL,
    settled_at bigint NOT NULL,
    not_before bigint NOT NULL,
    reason text NOT NULL,
    -- The outcome, where there is one: then none of these is null. Headers and trailers: repeated u16 length and name,
    -- u32 length and value, big-endian.
    status smallint,
    headers bytea,
    body bytea,
    trailers bytea,
    body_not_kept boolean NOT NULL,
    body_until bigint NOT NULL,
    -- The last recovery point, where there is one.
    checkpoint_seq bigint,
    checkpoint_name text,
    checkpoint_data bytea,
    PRIMARY KEY (id)
) PARTITION BY HASH (id);

-- Answers mostly come compressed, or short: trying to compress them again costs more than it saves.
ALTER TABLE onceward.record ALTER COLUMN headers SET STORAGE EXTERNAL, ALTER COLUMN body SET STORAGE EXTERNAL;

-- Eight: a batch of claims opens each that it meets.
DO $$
BEGIN
    FOR part IN 0..7 LOOP
        EXECUTE format('CREATE TABLE onceward.record_p%s PARTITION OF onceward.record'
            ' FOR VALUES WITH (MODULUS 8, REMAINDER %s) WITH (fillfactor = 70)', lpad(part::text, 2, '0'), part);
    END LOOP;
END
$$;

-- For the sweep: what ends next of a record, itself or its body before it. One index for both, since each costs every batch
-- of claims.
CREATE INDEX record_ends ON onceward.record (least(keep_until, nullif(body_until, 0))) WHERE keep_until > 0;
-- In flight or unknown: few among many. By a time that rises, so that claims write to one end of it.
CREATE INDEX record_open ON onceward.record (claimed_at) WHERE state = 1;

-- For each first byte of an id, the largest fence of any record that was deleted: raised in the same step. A later
-- record's fence is above it, so that fences rise for a key whatever was lost between.
CREATE TABLE onceward.mark (
    partition smallint PRIMARY KEY CHECK (partition BETWEEN 0 AND 255),
    fence bigint NOT NULL
);
-- Whoever claims asks whether any mark is above its fence; none is, unless the clock was set back.
CREATE INDEX mark_fence ON onceward.mark (fence);
INSERT INTO onceward.mark SELECT partition, 0 FROM generate_series(0, 255) AS partition;

-- What is true of the whole schema: `secret_id` which install secret record ids are made with, `clock` the latest time
-- that any process saw.
CREATE TABLE onceward.meta (
    name text PRIMARY KEY,
    value text NOT NULL
) WITH (fillfactor = 50);

-- The texts of fingerprint rules, by the number that records name them with.
CREATE TABLE onceward.rules (
    policy bigint PRIMARY KEY,
    text text NOT NULL,
    written_at bigint NOT NULL
);

-- Who waits for a key, so that only writes to such keys notify (a notification makes commits queue). Waits are bounded
-- and look again by themselves: a crash may empty it.
CREATE UNLOGGED TABLE onceward.waiter (
    record_id bytea PRIMARY KEY,
    until bigint NOT NULL
);

-- The install secret, for record_id(). Only the owner of the functions reads it.
CREATE TABLE onceward.secret (
    only_one boolean PRIMARY KEY DEFAULT true CHECK (only_one),
    bytes bytea NOT NULL CHECK (octet_length(bytes) = 32)
);
REVOKE ALL ON onceward.secret FROM PUBLIC;

-- Effects that an application wrote down in the transaction of the effect itself, with the answer where it has one by then.
CREATE TABLE onceward.effect (
    record_id bytea NOT NULL,
    fence bigint NOT NULL,
    name text NOT NULL,
    written_at bigint NOT NULL,
    status smallint,
    headers bytea,
    body bytea,
    UNIQUE (record_id, name)
);

-- Messages to be sent once the transaction that wrote them is committed.
CREATE TABLE onceward.outbox (
    message_id bytea PRIMARY KEY,
    record_id bytea NOT NULL,
    fence bigint NOT NULL,
    topic text NOT NULL,
    payload bytea NOT NULL,
    written_at bigint NOT NULL,
    sent_at bigint NOT NULL DEFAULT 0
);
CREATE INDEX outbox_unsent ON onceward.outbox (written_at) WHERE sent_at = 0;
