"""What one process of the server hands on to the next."""
