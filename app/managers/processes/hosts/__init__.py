"""Keepers on other hosts: how one is brought there, started and reached."""
