"""The registry on disk: one SQLite file in the state directory that knows every kernel.

The next server process finds the kernels by this file. Every function here blocks; `Registry` calls
them in a thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import msgspec

from ..log.places import Places
from ..owners.ownership import Share
from ..owners.principal import ANONYMOUS
from ..state import Restarts

__all__ = [
    "ExecutionRecord",
    "KernelRecord",
    "Lease",
    "OtherSchema",
    "RegistryStore",
    "SQLiteRegistry",
    "StoreAway",
    "UnusableRegistry",
    "check_store",
    "decode_json",
    "encode_json",
    "open_registry",
]

T = TypeVar("T")

FILE: Final = "registry.sqlite"

SCHEMA_VERSION: Final = 6
"""The version of the database's schema, which SQLite stores as its ``user_version``."""

LOCK_SECONDS: Final = 5.0
"""How long a statement waits for another process that is writing to the same file."""


class KernelRecord(msgspec.Struct):
    """What a server has to know about a kernel to adopt it.

    ``start_time`` is the process's (`app.keeper.processes`); it tells that process from a later one
    with the same ``pid``. ``generation`` counts the kernel's processes. ``created`` and
    ``last_activity`` are in seconds since the epoch.
    """

    id: str
    name: str
    spec: dict[str, Any]
    connection: dict[str, Any]
    connection_file: str
    provisioner: dict[str, Any]
    argv: list[str]
    cwd: str
    env: dict[str, str]
    pid: int | None
    start_time: str
    created: float
    last_activity: float
    generation: int
    execution_state: str
    reason: str
    """Why the kernel is dead, or has no process just now; empty otherwise."""
    exclusive: bool
    """Whether the server may end the process; it may not end one that others have started."""
    external: bool
    """Whether others have started the kernel: all that is known of it is its connection file."""
    restarts: Restarts | None = None
    owner: str = ANONYMOUS
    owner_groups: list[str] = []
    shares: list[Share] = []
    given: dict[str, bool | int | float | str] = {}
    """Options of its engine that were given for this kernel."""
    replaced: bool = False
    """Whether the process was about to be ended for the next one, and may have been asked to."""

    @property
    def dead(self) -> bool:
        """Whether the kernel has no process any more, and is listed only to be looked at."""
        return self.execution_state == "dead" and bool(self.reason)


class ExecutionRecord(msgspec.Struct):
    """A stored execution; ``number`` gives the order in which a kernel's were asked for."""

    kernel_id: str
    id: str
    number: int
    data: bytes


class Lease(msgspec.Struct):
    """Which server process has the kernels; ``renewed`` is in seconds since the epoch."""

    server: str
    pid: int
    start_time: str
    renewed: float


class UnusableRegistry(Exception):
    """The registry cannot be used; the text says why, in one line. No kernel was touched."""


class StoreAway(Exception):
    """A registry on another machine cannot be asked just now; the text says why, in one line."""


class RegistryStore(Protocol):
    """Where the registry is stored. Each call is one transaction, and may block."""

    def load(self) -> list[KernelRecord]:
        """Every kernel, in the order in which they were created."""

    def save(self, record: KernelRecord) -> None:
        """Store the record of a kernel, new or changed."""

    def touch(self, seen: Iterable[tuple[str, float, str, bytes]]) -> None:
        """Update the records of kernels; an id without a record is passed over.

        Each tuple has a kernel's id, its last activity (seconds since the epoch), its execution
        state, and its model as JSON, which only a shared registry stores.
        """

    def delete(self, kernel_id: str) -> None:
        """Delete a kernel's record, its executions, and the places of its clients."""

    def load_executions(self, kernel_id: str) -> list[ExecutionRecord]:
        """The executions of a kernel in the order in which they were asked for."""

    def save_executions(
        self, changed: Iterable[ExecutionRecord], forgotten: Iterable[tuple[str, str]]
    ) -> None:
        """Store executions, new or changed, and delete others, by kernel id and execution id."""

    def load_places(self, kernel_id: str) -> Places | None:
        """The places of a kernel's clients, if there are any."""

    def save_places(self, changed: Iterable[Places]) -> None:
        """Store the places of kernels' clients, for each kernel in place of the last."""

    def lease(self) -> Lease | None:
        """The last lease that was stored, if there is one."""

    def take_lease(self, lease: Lease) -> None:
        """Store a lease in place of the last. The caller holds the lock of the state directory."""

    def close(self) -> None:
        """Close the file; no other method may be called afterwards."""


_COLUMNS: Final = tuple(field.name for field in msgspec.structs.fields(KernelRecord))
_JSON: Final = frozenset(
    {
        *("spec", "connection", "provisioner", "argv", "env", "restarts"),
        *("owner_groups", "shares", "given"),
    }
)
_FLAGS: Final = ("exclusive", "external", "replaced")

_MIGRATIONS: Final = (
    (
        "CREATE TABLE kernel (id TEXT PRIMARY KEY, name, spec, connection, connection_file, "
        "provisioner, argv, cwd, env, pid, start_time, owner, limits, created, last_activity, "
        "generation, execution_state, exclusive) WITHOUT ROWID",
        "CREATE TABLE execution (kernel_id TEXT, id TEXT, number INTEGER, data BLOB, "
        "PRIMARY KEY (kernel_id, id)) WITHOUT ROWID",
        "CREATE TABLE lease (only_one INTEGER PRIMARY KEY CHECK (only_one = 1), server, pid, "
        "start_time, renewed)",
    ),
    (  # SQLite drops columns from 3.35 on only
        "ALTER TABLE kernel RENAME TO kernel_1",
        "CREATE TABLE kernel (id TEXT PRIMARY KEY, name, spec, connection, connection_file, "
        "provisioner, argv, cwd, env, pid, start_time, created, last_activity, generation, "
        "execution_state, reason, exclusive, external) WITHOUT ROWID",
        "INSERT INTO kernel SELECT id, name, spec, connection, connection_file, provisioner, argv, "
        "cwd, env, pid, start_time, created, last_activity, generation, execution_state, '', "
        "exclusive, 0 FROM kernel_1",
        "DROP TABLE kernel_1",
    ),
    ("ALTER TABLE kernel ADD COLUMN restarts DEFAULT 'null'",),
    (
        "ALTER TABLE kernel ADD COLUMN owner DEFAULT 'anonymous'",
        "ALTER TABLE kernel ADD COLUMN owner_groups DEFAULT '[]'",
        "ALTER TABLE kernel ADD COLUMN shares DEFAULT '[]'",
    ),
    (
        "ALTER TABLE kernel ADD COLUMN replaced DEFAULT 0",
        "CREATE TABLE places (kernel_id TEXT PRIMARY KEY, epoch, data BLOB) WITHOUT ROWID",
    ),
    ("ALTER TABLE kernel ADD COLUMN given DEFAULT '{}'",),
)
"""The statements that bring a database from each version to the next; released, they never change.
"""


class SQLiteRegistry:
    """A `RegistryStore` in one file of mode 0600. Every method may raise `sqlite3.Error`.

    The constructor raises `OtherSchema` for a file that a newer version has written, and without
    ``migrate`` for an older version's, too.
    """

    def __init__(self, path: Path, *, migrate: bool = True) -> None:
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        self._connection = sqlite3.connect(
            path, timeout=LOCK_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare(migrate=migrate)
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self, *, migrate: bool) -> None:
        execute = self._connection.execute
        (version,) = execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION or not (migrate or version == SCHEMA_VERSION):
            raise OtherSchema(version)
        (fault,) = execute("PRAGMA quick_check(1)").fetchone()
        if fault != "ok":
            raise sqlite3.DatabaseError(" ".join(fault.split()))
        # Whoever reads (`kernelkeep kernels`) holds up no write, and no write holds up the reader.
        execute("PRAGMA journal_mode = WAL")
        # A committed transaction survives the end of this process without a sync. The end of the
        # machine may lose it, but ends the kernels too.
        execute("PRAGMA synchronous = OFF")
        # In one transaction with the version: a server that is killed in the middle leaves the file
        # as it was.
        with self._transaction():
            for migration in _MIGRATIONS[version:]:
                for statement in migration:
                    execute(statement)
            if migrate:  # a killed server may have stored places of clients of a deleted kernel
                execute("DELETE FROM places WHERE kernel_id NOT IN (SELECT id FROM kernel)")
            # Written even if it does not change, so that a full disk is noticed now.
            execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    @contextlib.contextmanager
    def _transaction(self) -> Any:
        # IMMEDIATE takes the lock now, and waits for it if need be. A transaction that begins by
        # reading, and writes later, would fail at once if another process has written meanwhile.
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # On a full disk SQLite has rolled back already, and refuses to do so again.
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def load(self) -> list[KernelRecord]:
        rows = self._connection.execute(
            f"SELECT {', '.join(_COLUMNS)} FROM kernel ORDER BY created"
        ).fetchall()
        try:
            return [_record(row) for row in rows]
        except (msgspec.MsgspecError, TypeError) as error:
            raise sqlite3.DatabaseError(f"a row makes no sense: {error}") from None

    def save(self, record: KernelRecord) -> None:
        values = [
            encode_json(value) if name in _JSON else _storable(value)
            for name, value in zip(_COLUMNS, msgspec.structs.astuple(record), strict=True)
        ]
        marks = ", ".join("?" * len(_COLUMNS))
        self._connection.execute(
            f"INSERT OR REPLACE INTO kernel ({', '.join(_COLUMNS)}) VALUES ({marks})", values
        )

    def touch(self, seen: Iterable[tuple[str, float, str, bytes]]) -> None:
        rows = [(activity, state, kernel_id) for kernel_id, activity, state, _ in seen]
        with self._transaction():
            self._connection.executemany(
                "UPDATE kernel SET last_activity = ?, execution_state = ? WHERE id = ?", rows
            )

    def delete(self, kernel_id: str) -> None:
        with self._transaction():
            self._connection.execute("DELETE FROM kernel WHERE id = ?", (kernel_id,))
            self._connection.execute("DELETE FROM execution WHERE kernel_id = ?", (kernel_id,))
            self._connection.execute("DELETE FROM places WHERE kernel_id = ?", (kernel_id,))

    def load_executions(self, kernel_id: str) -> list[ExecutionRecord]:
        rows = self._connection.execute(
            "SELECT kernel_id, id, number, data FROM execution WHERE kernel_id = ? ORDER BY number",
            (kernel_id,),
        )
        return [ExecutionRecord(*row) for row in rows.fetchall()]

    def save_executions(
        self, changed: Iterable[ExecutionRecord], forgotten: Iterable[tuple[str, str]]
    ) -> None:
        with self._transaction():
            self._connection.executemany(
                "INSERT OR REPLACE INTO execution (kernel_id, id, number, data) "
                "VALUES (?, ?, ?, ?)",
                [msgspec.structs.astuple(record) for record in changed],
            )
            self._connection.executemany(
                "DELETE FROM execution WHERE kernel_id = ? AND id = ?", list(forgotten)
            )

    def load_places(self, kernel_id: str) -> Places | None:
        row = self._connection.execute(
            "SELECT kernel_id, epoch, data FROM places WHERE kernel_id = ?", (kernel_id,)
        ).fetchone()
        return None if row is None else Places(*row)

    def save_places(self, changed: Iterable[Places]) -> None:
        with self._transaction():
            self._connection.executemany(
                "INSERT OR REPLACE INTO places (kernel_id, epoch, data) VALUES (?, ?, ?)",
                [msgspec.structs.astuple(places) for places in changed],
            )

    def lease(self) -> Lease | None:
        row = self._connection.execute(
            "SELECT server, pid, start_time, renewed FROM lease"
        ).fetchone()
        return None if row is None else Lease(*row)

    def take_lease(self, lease: Lease) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO lease (only_one, server, pid, start_time, renewed) "
            "VALUES (1, ?, ?, ?, ?)",
            msgspec.structs.astuple(lease),
        )

    def close(self) -> None:
        self._connection.close()


class OtherSchema(Exception):
    """Another version has written the file; the argument is the version of its schema."""


def encode_json(value: Any) -> str:
    """A field of a record as JSON text.

    Variables and paths may have bytes that are no UTF-8, which Python has as lone surrogates
    [PEP 383]. msgspec refuses to encode those; the json module writes them as escapes.
    """
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value))


def decode_json(text: str, kind: type[T]) -> T:
    """The value, of the type ``kind``, that `encode_json` has encoded.

    Raises `msgspec.MsgspecError` if the text is no JSON, or not of such a value.
    """
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError:
        with contextlib.suppress(ValueError, RecursionError):  # then the first error tells more
            return msgspec.convert(json.loads(text), kind)
        raise


def _storable(value: Any) -> Any:
    """A value as SQLite stores it: a text that is no UTF-8 as bytes."""
    try:
        if isinstance(value, str):
            value.encode()
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")
    return value


def _restored(value: Any) -> Any:
    return value.decode("utf-8", "surrogatepass") if isinstance(value, bytes) else value


def _record(row: tuple[Any, ...]) -> KernelRecord:
    fields = {
        name: decode_json(value, Any) if name in _JSON else _restored(value)
        for name, value in zip(_COLUMNS, row, strict=True)
    }
    for name in _FLAGS:
        fields[name] = bool(fields[name])
    return msgspec.convert(fields, KernelRecord)


def check_store(state_dir: Path) -> None:
    """Raise `UnusableRegistry` if the registry of a state directory cannot be read or written."""
    path = state_dir / FILE
    try:
        SQLiteRegistry(path).close()
    except (sqlite3.OperationalError, OSError) as error:
        raise UnusableRegistry(f"{path} cannot be used: {error}") from None
    except (sqlite3.DatabaseError, OtherSchema):
        pass  # open_registry puts it aside


def open_registry(state_dir: Path) -> tuple[SQLiteRegistry, str]:
    """The registry of a state directory, and why its file was put aside, or an empty text.

    A file that is damaged, or that a newer version has written, is renamed, and a new one is begun:
    the kernels of the old file run on, but this server does not know them. Raises
    `UnusableRegistry` if the state directory cannot be read or written at all.
    """
    path = state_dir / FILE
    try:
        store = SQLiteRegistry(path)
        try:
            store.load()
        except sqlite3.Error:
            store.close()
            raise
        return store, ""
    except OtherSchema as error:
        why = (
            f"{path} was written by a newer kernelkeep "
            f"(its schema is {error}, this one knows {SCHEMA_VERSION})"
        )
        kept = _put_aside(path, "newer")
    except sqlite3.OperationalError as error:  # full, locked, read-only: the file itself is sound
        raise UnusableRegistry(f"{path} cannot be used: {error}") from None
    except sqlite3.DatabaseError as error:
        why = f"{path} is damaged ({error})"
        kept = _put_aside(path, "damaged")
    except OSError as error:
        raise UnusableRegistry(f"{path} cannot be used: {error.strerror}") from None
    try:
        return SQLiteRegistry(path), (
            f"{why}; it is kept as {kept.name}. Kernels that it knew run on, unknown to this server"
        )
    except (OSError, sqlite3.Error) as error:
        raise UnusableRegistry(f"{path} cannot be used: {error}") from None


def _put_aside(path: Path, why: str) -> Path:
    """Rename a database and the files that SQLite has beside it; returns the new path.

    They are renamed and not removed, so that they can be examined, or used again.
    """
    # The process's id, too: two servers that are started in one second put aside two files.
    kept = path.with_name(f"{path.name}.{why}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}")
    try:
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}{suffix}", f"{kept}{suffix}")
    except OSError as error:
        raise UnusableRegistry(f"{path} cannot be put aside: {error.strerror}") from None
    return kept
