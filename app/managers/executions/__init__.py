"""Executions: what the log says about each request to run code."""
