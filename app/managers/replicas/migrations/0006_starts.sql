-- What owners have used of their starts a minute, at all replicas: as a `Meter` has it.
CREATE TABLE kernelkeep.starts (
    owner text PRIMARY KEY,
    used double precision NOT NULL,
    at timestamptz NOT NULL
);
CREATE INDEX starts_at ON kernelkeep.starts (at);
