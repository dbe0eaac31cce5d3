"""Python kernels that are forked from a process with the imports done, instead of started."""
