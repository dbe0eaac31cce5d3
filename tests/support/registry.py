"""What a server has stored for the next one, as it lies in the state directory."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

__all__ = ["open_registry", "row_of"]


@contextmanager
def open_registry(state_dir: Path) -> Iterator[sqlite3.Connection]:
    """The registry in a state directory; what the block changes is there when it has ended."""
    with closing(sqlite3.connect(state_dir / "registry.sqlite")) as connection, connection:
        yield connection


def row_of(state_dir: Path, execution_id: str) -> bytes:
    """What is stored of an execution; nothing if it is not known."""
    with open_registry(state_dir) as registry:
        query = "SELECT data FROM execution WHERE id = ?"
        row = registry.execute(query, (execution_id,)).fetchone()
    return b"" if row is None else bytes(row[0])
