"""Keepers in jobs of engines that people already run: containers of Docker and podman."""
