"""The list of tokens in the registry that replicas share, on whichever hosts they are."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, Final, TypeVar

from ..handover.store import StoreAway, UnusableRegistry
from ..owners.token_table import Execute, TokenTable, UnusableTokens
from .database import Connection, Database, migrate

__all__ = ["SharedTokens", "SharedTokensPlace"]

T = TypeVar("T")

ANSWER_SECONDS: Final = 8.0
"""How long the database may take for an answer, as when its processes are stopped."""


class SharedTokensPlace:
    """The list of tokens of a registry, as a `TokenPlace`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def key(self) -> Hashable:
        """As `TokenPlace.key`: there is one list for good."""
        return "registry"

    def open(self, *, create: bool = False) -> SharedTokens:
        """As `TokenPlace.open`. With ``create`` a registry without a list is migrated."""
        return SharedTokens(Database(self._url), create=create)


class SharedTokens(TokenTable):
    """A list of tokens in PostgreSQL."""

    table = "kernelkeep.token"
    name = "the list of tokens in the registry"

    def __init__(self, database: Database, *, create: bool = False) -> None:
        self._database = database
        try:
            # The columns are looked at, not the registry's version: replicas of two versions share
            # a registry while they are upgraded.
            is_there, is_newest = self._run(_state)
            if not is_there and not create:
                raise FileNotFoundError
            if not is_newest:
                with self._bounded():
                    migrate(database)
        except UnusableRegistry as error:
            database.close()
            raise UnusableTokens(str(error)) from None
        except BaseException:
            database.close()
            raise

    @contextlib.contextmanager
    def _bounded(self) -> Iterator[None]:
        """A block in which each attempt at the database takes `ANSWER_SECONDS` at the most."""
        # No bound of psycopg's ends the wait for a database whose processes are stopped. Work that
        # is aborted is tried once more (`Database.run`), so there may be two aborts. An abort that
        # comes when the work has just ended does no harm: the next work makes a new connection.
        done = threading.Event()

        def abort() -> None:
            while not done.wait(ANSWER_SECONDS):
                self._database.abort()

        threading.Thread(target=abort, name="tokens' bound", daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _run(self, work: Callable[[Connection], T]) -> T:
        try:
            with self._bounded():
                return self._database.run(work)
        except StoreAway as error:
            raise UnusableTokens(f"{self.name} cannot be used: {error}") from None

    def _read(self, work: Callable[[Execute], T]) -> T:
        return self._run(lambda connection: work(_execute(connection)))

    def _write(self, work: Callable[[Execute], T]) -> T:
        def alone(connection: Connection) -> T:
            # The lock lets one writer at a time work, on all hosts: so a writer may read a version
            # and count it up, or check a limit before it inserts. Readers are not held up.
            connection.execute("LOCK TABLE kernelkeep.token IN SHARE ROW EXCLUSIVE MODE")
            return work(_execute(connection))

        return self._run(alone)

    def _repeat(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        # All statements are sent before the first answer is read, and only single rows are locked:
        # storing when thousands of tokens were used holds up no other writer for long. The rows
        # come in one order, so that two replicas never wait for each other.
        marked = statement.replace("?", "%s").encode()
        self._run(lambda connection: connection.cursor().executemany(marked, rows))

    def changes_elsewhere(self) -> Hashable:
        """As `TokenTable.changes_elsewhere`; here this process's own changes count, too."""
        return self.state()

    def close(self) -> None:
        """As `TokenTable.close`."""
        self._database.close()


def _state(connection: Connection) -> tuple[bool, bool]:
    """Whether there is a list, and whether it has all columns."""
    rows = connection.execute(
        "SELECT column_name FROM information_schema.columns "
        "WHERE table_schema = 'kernelkeep' AND table_name = 'token'"
    ).fetchall()
    return bool(rows), ("revoked_by",) in rows


def _execute(connection: Connection) -> Execute:
    def execute(statement: str, *values: Any) -> list[tuple[Any, ...]]:
        cursor = connection.execute(statement.replace("?", "%s").encode(), values)
        return cursor.fetchall() if cursor.description else []

    return execute
