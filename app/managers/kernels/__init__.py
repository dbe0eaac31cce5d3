"""Kernels by id, and the policies that start, restart and stop them."""
