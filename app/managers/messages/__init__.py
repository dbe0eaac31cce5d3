"""The messages between clients and one kernel: requests to it, and what its log says in return."""
