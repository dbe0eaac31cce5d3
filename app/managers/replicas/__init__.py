"""Several replicas of the service that share one registry in PostgreSQL."""
