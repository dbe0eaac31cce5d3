"""Sessions: each joins a document or console to its kernel."""
