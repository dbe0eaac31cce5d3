"""The server's side of the keeper: its connection, its client, and its provisioner."""
