-- The places of kernels' clients, as `app.managers.log.places` has them: one row for each kernel.
CREATE TABLE kernelkeep.places (
    kernel_id text PRIMARY KEY,
    epoch text NOT NULL,                -- of the log in which they are
    data bytea NOT NULL,
    noted timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- A place for a kernel that a replica is about to start. It ends with the replica.
CREATE TABLE kernelkeep.reservation (
    kernel_id text PRIMARY KEY,
    owner text NOT NULL,
    replica text NOT NULL REFERENCES kernelkeep.replica (id) ON DELETE CASCADE
);
CREATE INDEX reservation_of_replica ON kernelkeep.reservation (replica);

-- What one replica at a time does, and what it has made: requests with an Idempotency-Key, and
-- sessions of a path, which are made one after the other.
CREATE TABLE kernelkeep.idempotency (
    name bytea PRIMARY KEY,             -- a digest of the owner, the purpose and the key
    owner text NOT NULL,
    request bytea NOT NULL,             -- a digest: what was asked for
    attempt text NOT NULL,
    replica text REFERENCES kernelkeep.replica (id) ON DELETE SET NULL,
    made text,                          -- the id of what was made; NULL while it is being made
    noted timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX idempotency_of_replica ON kernelkeep.idempotency (replica);
CREATE INDEX idempotency_noted ON kernelkeep.idempotency (noted);
