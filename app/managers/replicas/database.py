"""One connection to the PostgreSQL database of the shared registry, made again when it is lost.

Everything here blocks, and is called in a thread. No text of an error that is raised here has the
password of the database.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable
from importlib import resources
from typing import Any, Final, TypeVar
from urllib.parse import unquote, urlsplit

import psycopg

from ..handover.store import StoreAway, UnusableRegistry

__all__ = ["CHANNEL", "Connection", "Database", "migrate", "newest_version"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

Connection = psycopg.Connection[tuple[Any, ...]]

CHANNEL: Final = "kernelkeep"
"""The channel on which replicas tell each other what has changed (LISTEN, NOTIFY)."""

CONNECT_SECONDS: Final = 3
"""How long a connection may take to be made, for each address that the host's name has."""

STATEMENT_SECONDS: Final = 5
"""How long the database lets a statement take, and a statement's wait for a lock."""

IDLE_SECONDS: Final = 1.0
"""How long the database waits for the next statement of a transaction.

A replica that is stopped, or cut off, in a transaction keeps its row locked, and cannot be declared
dead before the database ends the transaction.
"""

_MIGRATING: Final = 0x6B65726E656C6B65
"""The key of the advisory lock under which one process at a time migrates."""

# Errors after which the same work may succeed. Not all are of a lost connection: a statement that
# has taken too long, or was ended as two were waiting for each other, is an OperationalError, too.
_AWAY: Final = (
    psycopg.OperationalError,
    psycopg.InterfaceError,
    psycopg.errors.IdleInTransactionSessionTimeout,
)


class Database:
    """A connection that is made when it is first needed. One thread at a time may `run` work."""

    def __init__(self, url: str) -> None:
        self.url = url
        written = urlsplit(url).password or ""
        self._passwords = sorted({written, unquote(written)} - {""}, key=len, reverse=True)
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._is_closed = False

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in a transaction and return its result. ``work`` may run twice.

        It runs a second time if the connection turns out to be lost, whether the first transaction
        was committed or not, and so must do no harm then. Raises `StoreAway`.
        """
        # A connection that was made earlier may have been lost long ago, unnoticed: its failure
        # says nothing of the database. If a connection that was just made fails, the caller, who
        # has a bound, is told at once.
        is_fresh = self._connection is None
        try:
            return self._run(work)
        except _AWAY as error:
            self.close_connection()
            if is_fresh or self._is_closed:
                raise StoreAway(self.plain(error)) from None
        except psycopg.Error as error:  # the database has refused the work, and would again
            raise StoreAway(self.plain(error)) from None
        try:
            return self._run(work)
        except psycopg.Error as error:
            self.close_connection()
            raise StoreAway(self.plain(error)) from None

    def _run(self, work: Callable[[Connection], T]) -> T:
        connection = self._connection
        if connection is None or connection.closed:
            connection = self._connect()
        # An exception of `work` rolls back. If the connection is lost at the commit, it is not
        # known here whether the transaction was committed.
        with connection.transaction():
            return work(connection)

    def _connect(self) -> Connection:
        connection = psycopg.connect(
            self.url,
            autocommit=True,
            connect_timeout=CONNECT_SECONDS,
            application_name="kernelkeep",
            # A database without an encoding of its own (SQL_ASCII) would give text as bytes.
            client_encoding="UTF8",
            # A pooler between here and the database would mix prepared statements up.
            prepare_threshold=None,
            keepalives_idle=CONNECT_SECONDS,
            keepalives_interval=1,
            keepalives_count=3,
            tcp_user_timeout=1000 * STATEMENT_SECONDS,
        )
        # `close` and `abort` are called by other threads, and take the lock, too: either they find
        # this connection, or this thread finds that `close` was called meanwhile.
        with self._lock:
            if self._is_closed:
                connection.close()
                raise psycopg.OperationalError("the registry is being closed")
            self._connection = connection
        milliseconds, idle = 1000 * STATEMENT_SECONDS, round(1000 * IDLE_SECONDS)
        try:
            connection.execute(f"SET statement_timeout = {milliseconds}")
            connection.execute(f"SET lock_timeout = {milliseconds}")
            connection.execute(f"SET idle_in_transaction_session_timeout = {idle}")
        except BaseException:
            self.close_connection()
            raise
        return connection

    def open(self) -> Connection:
        """The connection itself, for a caller that listens with it. Raises `StoreAway`."""
        try:
            return self._connection or self._connect()
        except psycopg.Error as error:
            raise StoreAway(self.plain(error)) from None

    def abort(self) -> None:
        """Have the work that runs now fail, whatever it waits for; any thread may call this.

        A database whose process is stopped answers nothing, and its machine keeps the connection
        alive: no bound of the client's library ends that wait.
        """
        # A connection that is just being made is not in `_connection` yet: it has its own bound.
        # The work that is aborted may be another caller's: one thread does all work of this object
        # in order, so that work holds up the work of whoever calls this.
        with self._lock:
            connection = self._connection
            if connection is not None and not connection.closed:
                # A duplicate of the descriptor is shut down: the thread that waits may close the
                # original at any moment, whose number may then be another file's.
                with (
                    contextlib.suppress(OSError, psycopg.Error),
                    socket.socket(fileno=os.dup(connection.fileno())) as end,
                ):
                    end.shutdown(socket.SHUT_RDWR)

    def close_connection(self) -> None:
        """Close the connection; the next work makes another."""
        with self._lock:
            connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    def close(self) -> None:
        """Close the connection for good."""
        with self._lock:
            self._is_closed = True
        self.close_connection()

    def plain(self, error: psycopg.Error) -> str:
        """The text of an error in one line, without the password.

        The details of an error would repeat a row, in which there are keys of kernels.
        """
        # An error of libpq may quote a part of the URL as it is written, percent-encoded, so both
        # forms are replaced. The longer one goes first: the shorter one may be a part of it.
        text = error.diag.message_primary or str(error)
        for password in self._passwords:
            text = text.replace(password, "***")
        return " ".join(text.split()) or type(error).__name__


def _migrations() -> list[tuple[int, str]]:
    """The migrations in order: the version that each leads to, and its statements."""
    directory = resources.files(__package__) / "migrations"
    files = sorted(
        (file for file in directory.iterdir() if file.name.endswith(".sql")),
        key=lambda file: file.name,
    )
    return [(int(file.name.partition("_")[0]), file.read_text()) for file in files]


def newest_version() -> int:
    """The version of the registry that this kernelkeep knows."""
    return _migrations()[-1][0]


def migrate(database: Database) -> tuple[int, int]:
    """Migrate the registry to the newest version; returns the version before and the one now.

    A second process waits for the first, and finds the work done. There is no way back. Raises
    `UnusableRegistry` for a registry of a newer version that this kernelkeep cannot use, and if the
    database cannot be used.
    """
    try:
        before, least = database.run(_migrate)
    except StoreAway as error:
        raise UnusableRegistry(f"the registry cannot be used: {error}") from None
    except _WrongEncoding as error:
        raise UnusableRegistry(
            f"the database has the encoding {error}, in which not every name can be stored: make "
            "one with ENCODING 'UTF8'"
        ) from None
    newest = newest_version()
    if least > newest:
        raise UnusableRegistry(
            f"the registry was written by a newer kernelkeep (its version is {before}, this one "
            f"knows {newest}): upgrade this one"
        )
    return before, max(before, newest)


class _WrongEncoding(Exception):
    """The encoding of the database."""


def _migrate(connection: Connection) -> tuple[int, int]:
    """Run the missing migrations in one transaction.

    Returns the registry's version before, and the oldest version of a kernelkeep that can use the
    registry now. Raises `_WrongEncoding`.
    """
    execute = connection.execute
    (encoding,) = execute("SHOW server_encoding").fetchone() or ("",)
    if encoding not in ("UTF8", "SQL_ASCII"):
        raise _WrongEncoding(encoding)
    # The lock lasts to the end of the transaction, which has all migrations or none. Replicas of
    # the version before go on meanwhile, and wait where a migration has locked a table.
    execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATING,))
    # The table is looked for first, as CREATE takes a right that the user of a registry which is
    # there already need not have. A table is read for that, and not to_regclass: that may answer
    # from a cache that is older than the lock.
    there = execute(
        "SELECT FROM pg_tables WHERE schemaname = 'kernelkeep' AND tablename = 'migration'"
    ).fetchone()
    if there is None:
        execute("CREATE SCHEMA IF NOT EXISTS kernelkeep")
        execute(
            "CREATE TABLE kernelkeep.migration (version integer PRIMARY KEY, "
            "applied timestamptz NOT NULL DEFAULT clock_timestamp())"
        )
    row = execute("SELECT coalesce(max(version), 0) FROM kernelkeep.migration").fetchone()
    before = int(row[0]) if row else 0
    for version, statements in _migrations():
        if version > before:
            execute(statements.encode())
            execute("INSERT INTO kernelkeep.migration (version) VALUES (%s)", (version,))
            logger.info("the registry was brought to version %d", version)
    usable = execute("SELECT least FROM kernelkeep.usable").fetchone()
    return before, int(usable[0]) if usable else before
