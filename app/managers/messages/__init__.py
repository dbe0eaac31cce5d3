"""Messages between clients and kernels."""
