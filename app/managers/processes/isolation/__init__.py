"""Kernels of different owners kept apart: as users of the system, or in sandboxes."""
