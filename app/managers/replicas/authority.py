"""The authority that the replicas of a registry share: its key is in the registry.

A reader of that row could pass for any replica, and for any keeper that dials in. The registry has
the keys of kernels anyhow: it has to be kept as secret as a state directory.
"""

from __future__ import annotations

from typing import Final

from ..processes.hosts.authority import new_authority
from .database import Connection, Database

__all__ = ["shared_authority"]

_NAME: Final = "authority"


def shared_authority(database: Database) -> bytes:
    """The authority's key and certificate, as PEM; the first replica makes them.

    Raises `StoreAway`, and `ImportError` without the package cryptography.
    """
    # A key takes a while to make, and is made outside of the transaction: two replicas may make a
    # key each. Both use the one that is stored first.
    found = database.run(_read)
    if found is None:
        made = new_authority()
        found = database.run(lambda connection: _keep(connection, made))
    return found


def _read(connection: Connection) -> bytes | None:
    row = connection.execute(
        "SELECT value FROM kernelkeep.secrets WHERE name = %s", (_NAME,)
    ).fetchone()
    return None if row is None else bytes(row[0])


def _keep(connection: Connection, made: bytes) -> bytes:
    """Store an authority, unless another replica has stored one; returns the one that is stored."""
    connection.execute(
        "INSERT INTO kernelkeep.secrets (name, value) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        (_NAME, made),
    )
    return _read(connection) or made
