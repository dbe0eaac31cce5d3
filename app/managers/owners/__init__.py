"""Owners and tokens: to whom a kernel belongs, who makes a request, and what a caller may do."""
