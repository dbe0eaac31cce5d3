-- The oldest version whose servers can use the registry as it is. They run beside those of the
-- newest while an upgrade goes through the replicas, and are started again if it is taken back. A
-- migration that only adds leaves this alone; one that an earlier version cannot live with sets it.
CREATE TABLE kernelkeep.usable (
    least integer NOT NULL
);
INSERT INTO kernelkeep.usable (least) VALUES (7);
