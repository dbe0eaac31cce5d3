"""The list of tokens on disk: one SQLite file in the state directory.

The registry is put aside if it cannot be trusted or understood. This file never is, nor is it
written over: a new file in its place would lack all revocations. Requests get an error instead.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote

from .token_table import Execute, TokenTable, UnusableTokens

__all__ = ["FILE", "TokenFile", "TokenStore", "check_tokens"]

T = TypeVar("T")

FILE: Final = "tokens.sqlite"

SCHEMA_VERSION: Final = 1
"""The version of the database's schema, which SQLite stores as its ``user_version``."""

LOCK_SECONDS: Final = 5.0
"""How long a statement waits for another process that has the file."""

_MIGRATIONS: Final = (
    (
        "CREATE TABLE token (id TEXT PRIMARY KEY, digest BLOB UNIQUE NOT NULL, name, owner, "
        "groups, scopes, made_with, created, expires, revoked, last_used, version INTEGER, "
        "name_key, owner_key) WITHOUT ROWID",
        "CREATE INDEX token_version ON token (version)",
        "CREATE INDEX token_owner ON token (owner_key)",
        "CREATE INDEX token_made_with ON token (made_with)",
    ),
)
"""The statements that bring a database from each version to the next; released, they never change.
"""


class TokenStore(TokenTable):
    """The list of tokens of a state directory. The constructor and every method may raise
    `UnusableTokens`; without ``create`` a file that is not there is `FileNotFoundError`.
    """

    table = "token"

    def __init__(self, state_dir: Path, *, create: bool = False) -> None:
        self.path = state_dir / FILE
        self.name = str(self.path)
        if create:
            _create(self.path)
        _check_private(self.path)
        with self._explained():
            self._connection = sqlite3.connect(
                f"file:{quote(os.fspath(self.path.absolute()))}?mode=rw",
                uri=True,
                timeout=LOCK_SECONDS,
                isolation_level=None,
                check_same_thread=False,
            )
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def _prepare(self) -> None:
        execute = self._connection.execute
        (version,) = execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise UnusableTokens(
                f"{self.path} was written by a newer kernelkeep "
                f"(its schema is {version}, this one knows {SCHEMA_VERSION})"
            )
        (fault,) = execute("PRAGMA quick_check(1)").fetchone()
        if fault != "ok":
            raise sqlite3.DatabaseError(" ".join(fault.split()))
        # A revocation must survive a power failure, so it is on the disk before it is answered. Few
        # writes come.
        execute("PRAGMA synchronous = FULL")
        if version < SCHEMA_VERSION:
            with self._transaction():
                # Another process may have come first.
                (version,) = execute("PRAGMA user_version").fetchone()
                for migration in _MIGRATIONS[version:]:
                    for statement in migration:
                        execute(statement)
                execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        execute("SELECT name_key FROM token LIMIT 1")
        if not self._has_revoker():
            with self._transaction():
                if not self._has_revoker():  # another process may have come first
                    execute("ALTER TABLE token ADD COLUMN revoked_by NOT NULL DEFAULT ''")

    def _has_revoker(self) -> bool:
        # The column has no schema version of its own: an older server can go on with the file, and
        # leaves the column out.
        columns = self._connection.execute("PRAGMA table_info(token)")
        return any(name == "revoked_by" for _, name, *_ in columns)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn an error of SQLite into `UnusableTokens`, which names the file."""
        try:
            yield
        except sqlite3.OperationalError as error:
            raise UnusableTokens(f"{self.path} cannot be used: {error}") from None
        except sqlite3.DatabaseError as error:
            raise UnusableTokens(f"{self.path} is damaged: {error}") from None

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        # At once for writing: of two that both read first and then want to write, SQLite has one
        # fail without waiting for `LOCK_SECONDS`.
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # On a full disk SQLite has rolled back already, and refuses to do so again.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise

    def _execute(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(statement, values).fetchall()

    def _read(self, work: Callable[[Execute], T]) -> T:
        with self._explained():
            return work(self._execute)

    def _write(self, work: Callable[[Execute], T]) -> T:
        with self._explained(), self._transaction():
            return work(self._execute)

    def _repeat(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        with self._explained(), self._transaction():
            self._connection.executemany(statement, rows)

    def changes_elsewhere(self) -> int:
        """As `TokenTable.changes_elsewhere`."""
        [(number,)] = self._read(lambda execute: execute("PRAGMA data_version"))
        return int(number)

    def close(self) -> None:
        """As `TokenTable.close`."""
        self._connection.close()


class TokenFile:
    """The list of tokens of a state directory, as a `TokenPlace`."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir

    def key(self) -> tuple[int, int] | None:
        """As `TokenPlace.key`. Raises `UnusableTokens` for a file that others can read."""
        try:
            status = _check_private(self._state_dir / FILE)
        except FileNotFoundError:
            return None
        return status.st_dev, status.st_ino

    def open(self, *, create: bool = False) -> TokenStore:
        """As `TokenPlace.open`."""
        return TokenStore(self._state_dir, create=create)


def check_tokens(state_dir: Path) -> None:
    """Raise `UnusableTokens` if a state directory has a list of tokens that cannot be used."""
    with contextlib.suppress(FileNotFoundError):
        TokenStore(state_dir).close()


def _create(path: Path) -> None:
    """Make an empty file of mode 0600, unless there is one. Raises `UnusableTokens`."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = path.parent.stat().st_uid
        if owner != os.geteuid():
            # The server runs as that user, and could not read a file of this user.
            raise UnusableTokens(f"{path.parent} belongs to another user ({owner}): be that one")
        # Of two processes that try at the same time, one makes the file, and both go on with it.
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        os.close(os.open(path, flags, 0o600))
    except FileExistsError:
        pass
    except OSError as error:
        raise UnusableTokens(f"{path} cannot be used: {error.strerror}") from None


def _check_private(path: Path) -> os.stat_result:
    """Raise `UnusableTokens` unless the file is this user's alone.

    Another user who could read it would learn owners and scopes, and one who could write it could
    act as anybody.
    """
    try:
        status = path.lstat()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnusableTokens(f"{path} cannot be used: {error.strerror}") from None
    if not stat.S_ISREG(status.st_mode):
        raise UnusableTokens(f"{path} is not a file")
    if status.st_uid != os.geteuid():
        raise UnusableTokens(f"{path} belongs to another user ({status.st_uid})")
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        raise UnusableTokens(f"{path} is open to others (mode {mode:04o}): chmod 0600 {path}")
    return status
