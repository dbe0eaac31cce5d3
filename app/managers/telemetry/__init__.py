"""Telemetry: counters, events with their schemas, the audit log, and the event loop's lag."""
