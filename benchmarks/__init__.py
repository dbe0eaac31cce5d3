"""Measures kernelkeep beside other kernel servers and the bare ZMQ sockets."""
