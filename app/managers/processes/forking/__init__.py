"""Python kernels that are forked instead of started."""
