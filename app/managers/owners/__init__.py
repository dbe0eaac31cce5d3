"""Owners: whose a kernel is, who asks, and what a caller may do."""
