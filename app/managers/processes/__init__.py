"""The processes of kernels: how they are launched, watched and ended."""
