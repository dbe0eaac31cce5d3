-- What owners have used of their bytes of contents a day, at all replicas: as a `Meter` has it.
CREATE TABLE kernelkeep.contents (
    owner text PRIMARY KEY,
    used double precision NOT NULL,
    at timestamptz NOT NULL,
    dry timestamptz                     -- when nothing counts as used any more
);
CREATE INDEX contents_at ON kernelkeep.contents (at);

-- Servers of the version before leave it out: nobody uses more starts than there may be in a minute.
ALTER TABLE kernelkeep.starts ADD COLUMN dry timestamptz;

-- What each replica has of an owner's, as numbers that it sets. They end with the replica.
CREATE TABLE kernelkeep.share (
    owner text,
    replica text REFERENCES kernelkeep.replica (id) ON DELETE CASCADE,
    websockets integer NOT NULL,
    queued_executions integer NOT NULL,
    PRIMARY KEY (owner, replica)
);
CREATE INDEX share_of_replica ON kernelkeep.share (replica);
