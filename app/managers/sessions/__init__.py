"""Sessions: documents and their kernels."""
