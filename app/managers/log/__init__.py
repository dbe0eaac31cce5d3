"""A kernel's log, as the server reads it."""
