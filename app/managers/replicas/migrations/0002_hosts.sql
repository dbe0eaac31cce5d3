-- Replicas of several hosts. A host is a state directory, whose identity is in the address.

CREATE TABLE IF NOT EXISTS kernelkeep.secrets (
    name text PRIMARY KEY,
    value bytea NOT NULL                -- PEM: the key of the authority that all replicas trust
);

ALTER TABLE kernelkeep.replica
    -- host:port where replicas of other hosts dial it, by TLS; '' for nowhere
    ADD COLUMN dial text NOT NULL DEFAULT '',
    ADD COLUMN host text GENERATED ALWAYS AS (split_part(address, ':', 2)) STORED;

-- Replicas that are gone, until one of their host has ended what they had started and not stored.
CREATE TABLE kernelkeep.gone (
    id text PRIMARY KEY,
    host text NOT NULL,
    since timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX gone_of_host ON kernelkeep.gone (host);
