-- Keepers that dial in: any replica lets them in, and tells them which of them has their kernels.

ALTER TABLE kernelkeep.replica
    ADD COLUMN agents text[] NOT NULL DEFAULT '{}'; -- where keepers dial it, host:port

-- What the replicas have in common and nobody else may know: the key of their authority, for one.
CREATE TABLE IF NOT EXISTS kernelkeep.secrets (
    name text PRIMARY KEY,
    value bytea NOT NULL
);

-- A keeper without a row here is not needed, and told to end.
CREATE TABLE kernelkeep.invitation (
    keeper_id text PRIMARY KEY,
    kernel_id text NOT NULL,
    replica text NOT NULL,              -- which has invited it, perhaps for a kernel to come
    generation bigint NOT NULL,         -- the newest: keepers of earlier ones are to end
    secret text NOT NULL,               -- digests: the secret works once
    nonce text NOT NULL DEFAULT '',     -- of the keeper that has shown the secret
    has_joined boolean NOT NULL DEFAULT false,
    expires timestamptz NOT NULL
);
