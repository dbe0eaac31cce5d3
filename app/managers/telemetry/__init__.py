"""Counters, events, the audit log, and how late the event loop is."""
