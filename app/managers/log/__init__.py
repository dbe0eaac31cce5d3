"""A kernel's log as its readers see it: segment files, entries, gaps, and places of clients."""
