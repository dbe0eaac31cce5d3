-- The list of tokens, as `app.managers.owners.token_table` has it. Times are in seconds since the epoch.
CREATE TABLE kernelkeep.token (
    id text PRIMARY KEY,
    digest bytea UNIQUE NOT NULL,       -- SHA-256: the token itself is nowhere
    name text NOT NULL,
    owner text NOT NULL,
    groups text NOT NULL,               -- JSON, and so are the scopes
    scopes text NOT NULL,
    made_with text NOT NULL,
    created double precision NOT NULL,
    expires double precision,
    revoked double precision,
    last_used double precision,
    version bigint NOT NULL,
    name_key text NOT NULL,
    owner_key text NOT NULL
);
CREATE INDEX token_version ON kernelkeep.token (version);
CREATE INDEX token_owner ON kernelkeep.token (owner_key);
CREATE INDEX token_made_with ON kernelkeep.token (made_with);
