"""What one process of the server hands over to the next."""
