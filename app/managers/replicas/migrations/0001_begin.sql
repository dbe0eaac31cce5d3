-- The registry that replicas share. Statements that were released never change.

CREATE TABLE kernelkeep.replica (
    id text PRIMARY KEY,                -- of one process
    name text NOT NULL,
    address text NOT NULL,              -- where the other replicas reach it
    version text NOT NULL,
    secret text NOT NULL,               -- a digest of the server's token: all have the same
    joined timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires timestamptz NOT NULL        -- by the clock of this database
);

-- A replica that is declared dead is deleted, which frees its kernels in the same moment.
CREATE TABLE kernelkeep.kernel (
    id text PRIMARY KEY,
    replica text REFERENCES kernelkeep.replica (id) ON DELETE SET NULL,
    term bigint NOT NULL,               -- counted up whenever another replica takes the kernel
    keeper text NOT NULL,               -- how its keeper is reached
    owner text NOT NULL,
    created double precision NOT NULL,
    record text NOT NULL,               -- JSON: what it takes to adopt the kernel
    model text NOT NULL,                -- JSON: as the API shows it
    last_activity double precision NOT NULL,
    execution_state text NOT NULL
);
CREATE INDEX kernel_of_replica ON kernelkeep.kernel (replica);

-- A kernel's executions may be here before the kernel is: both are stored behind the start.
CREATE TABLE kernelkeep.execution (
    kernel_id text,
    id text,
    number bigint NOT NULL,
    data bytea NOT NULL,
    noted timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kernel_id, id)
);

-- Who had which kernel when. Its key is what makes two owners in one term impossible.
CREATE TABLE kernelkeep.tenure (
    kernel_id text,
    term bigint,
    replica text NOT NULL,
    began timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (kernel_id, term)
);

CREATE TABLE kernelkeep.session (
    id text PRIMARY KEY,
    number bigserial,
    path text NOT NULL,
    name text,
    type text NOT NULL,
    kernel_id text NOT NULL,
    owner text NOT NULL
);
