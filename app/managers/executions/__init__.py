"""Executions: what the log says about each ``execute_request``, and running code over HTTP."""
