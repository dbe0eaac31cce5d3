-- Which user of the system has revoked a token with the command, or nothing.
ALTER TABLE kernelkeep.token ADD COLUMN revoked_by text NOT NULL DEFAULT '';
