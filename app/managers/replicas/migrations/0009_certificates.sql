-- PEM: the certificate of a replica, and behind it those that it trusts; '' if it listens for none.
-- A replica that joins the others looks whether they take each other's.
ALTER TABLE kernelkeep.replica ADD COLUMN certificates text NOT NULL DEFAULT '';
