"""Sessions on disk: one SQLite table, with the columns of jupyter_server's.

A second table has the owners of sessions, but for those of the server's own token. So a Jupyter
server that opens the same file finds its own table unchanged.

Every function here blocks. `SessionBook` calls those that write in a thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import stat
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final, Protocol

import msgspec

from ..owners.principal import ANONYMOUS

__all__ = ["Session", "SessionKeeping", "SessionStore", "UnusableDatabase", "check_database"]

logger = logging.getLogger(__name__)

MEMORY: Final = ":memory:"

SCHEMA_VERSION: Final = 1
"""The version of the database's schema, in its ``user_version``. jupyter_server leaves 0 there."""

LOCK_SECONDS: Final = 5.0
"""How long a statement waits for another process that is writing to the same file."""

_COLUMNS: Final = ("session_id", "path", "name", "type", "kernel_id")
_TABLE: Final = f"CREATE TABLE IF NOT EXISTS session ({', '.join(_COLUMNS)})"
_OWNERS: Final = (
    "CREATE TABLE IF NOT EXISTS session_owner (session_id TEXT PRIMARY KEY, owner) WITHOUT ROWID"
)


class Session(msgspec.Struct, frozen=True):
    """A session: a document or console (its ``path`` and ``type``) and the kernel that it has."""

    id: str
    path: str
    name: str | None
    type: str
    kernel_id: str
    owner: str = ANONYMOUS


class SessionKeeping(Protocol):
    """Where sessions are stored, as `SessionStore` does it."""

    def turn(self, owner: str, path: str) -> AbstractAsyncContextManager[None]:
        """The turn to make an owner's session of a path, among all servers that have the store."""

    def load(self) -> list[Session]:
        """Every session, in the order in which they were made."""

    def save(self, session: Session) -> None:
        """Store a session, new or changed."""

    def delete(self, session_ids: Iterable[str]) -> None:
        """Remove sessions."""

    def abort(self) -> None:
        """Have a write fail that takes too long; any thread may call this."""

    def close(self) -> None:
        """Close the store: no session can be stored any more."""


class UnusableDatabase(Exception):
    """A file cannot be the database of sessions; the text says why. The file was not changed."""


def check_database(filepath: str) -> None:
    """Raise `UnusableDatabase` if ``filepath`` cannot be opened later; changes nothing."""
    if filepath == MEMORY:
        return
    path = Path(filepath)
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise UnusableDatabase(f"there is no directory {path.parent}") from None
        kind = None
    except OSError as error:
        raise UnusableDatabase(f"{path} cannot be used: {error.strerror}") from None
    if kind is not None and not stat.S_ISREG(kind):
        raise UnusableDatabase(f"{path} is not a file")
    if not os.access(path.parent if kind is None else path, os.R_OK | os.W_OK):
        raise UnusableDatabase(f"{path} cannot be written")
    if kind is not None:
        _check_content(path)


def _check_content(path: Path) -> None:
    """Raise `UnusableDatabase` unless a file is an empty database or one of sessions."""
    try:
        with contextlib.closing(_connect(str(path))) as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            tables = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            names = {name for (name,) in tables}
            columns = {row[1] for row in connection.execute("PRAGMA table_info(session)")}
            (fault,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.Error as error:
        raise UnusableDatabase(f"{path} cannot be used: {error}") from None
    if names and "session" not in names:
        raise UnusableDatabase(f"{path} is not a database of sessions")
    if version > SCHEMA_VERSION:
        raise UnusableDatabase(
            f"{path} was written by a newer kernelkeep "
            f"(its schema is {version}, this one knows {SCHEMA_VERSION})"
        )
    if names and not columns >= set(_COLUMNS):
        raise UnusableDatabase(f"{path} is not a database of sessions")
    if fault != "ok":
        raise UnusableDatabase(f"{path} is damaged: {' '.join(fault.split())}")


def _connect(filepath: str) -> sqlite3.Connection:
    # `isolation_level=None` makes each statement a transaction of its own. Only one thread at a
    # time uses the connection, but it need not be the one that made it.
    return sqlite3.connect(
        filepath, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
    )


class SessionStore:
    """The database of sessions: a file of mode 0600, or ``:memory:`` for this process only.

    The constructor raises `UnusableDatabase`.
    """

    def __init__(self, filepath: str) -> None:
        check_database(filepath)
        try:
            # Made before SQLite opens it, which would make it as the umask says.
            if filepath != MEMORY:
                os.close(os.open(filepath, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                with contextlib.suppress(PermissionError):  # another user owns the file
                    os.chmod(filepath, 0o600)
            self._connection = _connect(filepath)
        except (OSError, sqlite3.Error) as error:
            raise UnusableDatabase(f"{filepath} cannot be opened: {error}") from None
        try:
            self._connection.execute(_TABLE)
            self._connection.execute(_OWNERS)
            self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except sqlite3.Error as error:
            self._connection.close()
            raise UnusableDatabase(f"{filepath} cannot be written: {error}") from None

    def turn(self, owner: str, path: str) -> AbstractAsyncContextManager[None]:  # noqa: ARG002
        """No turn: no other server has this file."""
        return contextlib.nullcontext()

    def load(self) -> list[Session]:
        """Every session, in the order in which they were made; senseless rows are left out."""
        columns = ", ".join(f"session.{column}" for column in _COLUMNS)
        rows = self._connection.execute(
            f"SELECT {columns}, coalesce(owner, '{ANONYMOUS}') FROM session "
            "LEFT JOIN session_owner USING (session_id) ORDER BY session.rowid"
        )
        sessions = []
        for row in rows.fetchall():
            try:
                sessions.append(msgspec.convert(dict(zip(_FIELDS, row, strict=True)), Session))
            except msgspec.ValidationError as error:
                logger.warning("a stored session is left out: %s", error)
        return sessions

    def save(self, session: Session) -> None:
        """Store a session, new or changed. Raises `sqlite3.Error`."""
        *values, owner = msgspec.structs.astuple(session)
        if owner != ANONYMOUS:
            # First the owner: a session without one would be taken for everybody's.
            self._connection.execute(
                "INSERT OR REPLACE INTO session_owner VALUES (?, ?)", (session.id, owner)
            )
        # Updated in place, for the order of the rows is that in which the sessions were made.
        assignments = ", ".join(f"{column} = ?" for column in _COLUMNS)
        updated = self._connection.execute(
            f"UPDATE session SET {assignments} WHERE session_id = ?", (*values, session.id)
        )
        if updated.rowcount == 0:
            self._connection.execute(
                f"INSERT INTO session ({', '.join(_COLUMNS)}) VALUES (?, ?, ?, ?, ?)", values
            )

    def delete(self, session_ids: Iterable[str]) -> None:
        """Remove sessions. Raises `sqlite3.Error`."""
        # The owners last, as `save` has them first: each statement is a transaction of its own, and
        # a server that is killed between the two must leave no session without its owner.
        rows = [(session_id,) for session_id in session_ids]
        self._connection.executemany("DELETE FROM session WHERE session_id = ?", rows)
        self._connection.executemany("DELETE FROM session_owner WHERE session_id = ?", rows)

    def abort(self) -> None:
        """As `SessionKeeping.abort`, which a disk does not need: this does nothing."""

    def close(self) -> None:
        """Close the database; nothing can be stored any more."""
        self._connection.close()


_FIELDS: Final = tuple(field.name for field in msgspec.structs.fields(Session))
