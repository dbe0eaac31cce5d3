"""kernelkeep: a service that starts, drives and keeps Jupyter kernels."""

__version__ = "0.2.0"
