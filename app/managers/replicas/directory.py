"""The kernels, sessions and addresses of all replicas, as last read from the registry.

A thread listens to the database (LISTEN, NOTIFY), and reads again what has changed. After its
connection was lost it reads everything anew. So the directory is as old as a notification takes,
or, while the database is away, as old as `is_fresh` says it may be.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator
from typing import Any, Final, NamedTuple, TypeVar

import msgspec
import psycopg

from ...log_formats import about
from ..handover.elsewhere import KernelElsewhere, SharedSession
from ..handover.store import StoreAway
from ..owners.ownership import Ownership, Share
from .database import CHANNEL, Connection, Database
from .store import tell

__all__ = ["Directory"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_SECONDS: Final = 1.0
"""How often the thread looks whether it is to end."""

PING_SECONDS: Final = 5.0
"""How often the connection is tried when nothing is told."""

STALE_SECONDS: Final = 15.0
"""After so many seconds in which the database has not answered, its connection is given up."""

RETRY_SECONDS: Final = 0.5


class _Whose(msgspec.Struct):
    """Whose a kernel is: that part of its record."""

    owner: str
    owner_groups: list[str] = []
    shares: list[Share] = []


_whose: Final = msgspec.json.Decoder(_Whose).decode


_KERNELS: Final = (
    "SELECT id, replica, term, created, model, record, execution_state, "
    # Only a replica of the same host can take such a kernel.
    "replica IS NOT NULL OR left(keeper, 4) <> 'dir:' OR EXISTS "
    "(SELECT 1 FROM kernelkeep.replica AS one WHERE one.host = substr(keeper, 5)) "
    "FROM kernelkeep.kernel"
)
NO_REPLICA: Final = "no replica of its host is there"
"""Why a kernel cannot be reached, as the API shows it."""

_SESSIONS: Final = "SELECT id, number, path, name, type, kernel_id, owner FROM kernelkeep.session"


class _Found(NamedTuple):
    """Rows that were read again: those with these ids, or all rows if the ids are None."""

    kernels: list[KernelElsewhere]
    kernel_ids: set[str] | None
    sessions: list[SharedSession]
    session_ids: set[str] | None
    members: list[tuple[str, str, str, str, list[str]]]
    marks: Collection[str] = ()


class Directory:
    """The registry's content, in memory. Make it inside a running event loop, and `close` it.

    ``wake`` is called when there may be kernels to take: when replicas have come or gone, and when
    a kernel is nobody's. The functions in `on_replicas` are called when replicas have come or gone.
    """

    def __init__(self, url: str, wake: Callable[[], None]) -> None:
        self.kernels: dict[str, KernelElsewhere] = {}
        self.sessions: dict[str, SharedSession] = {}
        self.addresses: dict[str, str] = {}
        """Where replicas of one host reach each other, by their ids."""
        self.dials: dict[str, str] = {}
        """Where replicas of other hosts dial them, ``host:port``; empty for nowhere."""
        self.names: dict[str, str] = {}
        self.agents: dict[str, list[str]] = {}
        """Where keepers dial each replica that listens for them."""
        self.changes = 0
        """Counted up when kernels change."""
        self.on_sessions: Callable[[], None] = lambda: None
        self.on_change: Callable[[], None] = lambda: None
        """Called when replicas or kernels may have changed."""
        self.on_replicas: list[Callable[[], None]] = [wake]
        self._wake = wake
        self._database = Database(url)
        self._loop = asyncio.get_running_loop()
        self._ready: asyncio.Future[None] = self._loop.create_future()
        self._changed = asyncio.Event()
        self._marks: dict[str, asyncio.Future[None]] = {}
        self._heard = time.monotonic()
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="directory", daemon=True)
        self._watch: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Begin to listen; returns when everything has been read once. Raises `StoreAway`."""
        self._thread.start()
        self._watch = self._loop.create_task(self._watch_it(), name="directory's watch")
        done, _ = await asyncio.wait({self._ready}, timeout=STALE_SECONDS)
        if not done:
            raise StoreAway("the database does not answer")

    @property
    def is_fresh(self) -> bool:
        """Whether the database has been heard of lately."""
        return time.monotonic() - self._heard < PING_SECONDS + WAIT_SECONDS

    async def changed(self) -> None:
        """Return when something has changed."""
        await self._changed.wait()  # each change has an event of its own (`_apply`)

    def expect(self, mark: str) -> asyncio.Future[None]:
        """Done when all is known that the registry had when this ``mark`` was told there.

        Call this before the mark is told (`tell`). It is not done if the notification is lost with
        its connection; cancel it if you do not wait for it any more.
        """
        expected = self._marks[mark] = self._loop.create_future()

        def forget(_: object) -> None:
            # Called a turn of the loop later, when the same mark may be expected anew.
            if self._marks.get(mark) is expected:
                del self._marks[mark]

        expected.add_done_callback(forget)
        return expected

    def forget(self, kernel_id: str) -> None:
        """The kernel is gone, as this replica knows before the database tells."""
        # The thread may have read the row before the kernel was deleted, and its find be applied
        # behind this: then the kernel is shown until the deletion is heard, a moment later.
        if self.kernels.pop(kernel_id, None) is not None:
            self.changes += 1

    async def look(self, kernel_id: str) -> KernelElsewhere | None:
        """Ask the database for one kernel that is not known here. Raises `StoreAway`."""
        found = await self._once(lambda one: _kernels(one, {kernel_id}))
        return found[0] if found else None

    async def give_up(self, kernel_id: str) -> bool:
        """As `Known.give_up`. Its process is ended when a replica of its host is back."""
        is_gone = await self._once(lambda one: _give_up(one, kernel_id))
        if is_gone:
            about(logger, kernel_id=kernel_id).warning(
                "kernel %s was given up: no replica of its host is there", kernel_id
            )
            self.forget(kernel_id)
        return is_gone

    async def _once(self, work: Callable[[Connection], T]) -> T:
        """Do this by a connection of its own. Raises `StoreAway`."""
        # The other connection waits for notifications nearly always. A caller that gives up leaves
        # the thread of this one behind, which ends by the bounds of `Database`.
        database = Database(self._database.url)
        try:
            async with asyncio.timeout(2 * WAIT_SECONDS):
                return await asyncio.to_thread(database.run, work)
        except TimeoutError:
            raise StoreAway("the database does not answer") from None
        finally:
            await asyncio.to_thread(database.close)

    # The thread

    def _listen(self) -> None:
        # Whatever ends the connection, the next one begins with everything: what was told between
        # the two is lost, as PostgreSQL keeps notifications for nobody who does not listen.
        while not self._ends.is_set():
            try:
                self._listen_once(self._database.open())
            except StoreAway as error:
                logger.debug("the registry's changes are not heard: %s", error)
            except psycopg.Error as error:  # not from `Database.run`, which masks the password
                plain = self._database.plain(error)
                logger.debug("the registry's changes are not heard: %s", plain)
            except Exception:
                logger.exception("the registry's changes are not understood")
            self._database.close_connection()
            self._ends.wait(RETRY_SECONDS)

    def _listen_once(self, connection: Connection) -> None:
        # In this order: what is committed behind the first look is told, and read again.
        connection.execute(f"LISTEN {CHANNEL}".encode())
        self._tell(_everything(connection))
        pinged = time.monotonic()
        while not self._ends.is_set():
            told = [note.payload for note in _notes(connection)]
            if told:
                self._tell(_again(connection, told))
            elif time.monotonic() >= pinged + PING_SECONDS:
                connection.execute("SELECT 1")
                pinged = time.monotonic()
            self._heard = time.monotonic()

    def _tell(self, found: _Found) -> None:
        # The thread hands over what it has read: the tables are the loop's alone. Calls are made in
        # the order in which they are asked for, so that an older find is never applied last.
        self._heard = time.monotonic()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._apply, found)

    # The event loop

    def _apply(self, found: _Found) -> None:
        # All in one turn: whoever waits for a mark, or for a change, sees the whole of it.
        _replace(self.kernels, found.kernels, found.kernel_ids)
        if found.kernels or found.kernel_ids is None or found.kernel_ids:
            self.changes += 1
        # A replica that ends hands over one kernel after the other, while it is still there.
        if any(one.replica is None and one.is_reachable for one in found.kernels):
            self._wake()
        if found.sessions or found.session_ids is None or found.session_ids:
            _replace(self.sessions, found.sessions, found.session_ids)
            self.on_sessions()
        addresses = {replica: address for replica, _, address, _, _ in found.members}
        self.names = {replica: name for replica, name, _, _, _ in found.members}
        self.dials = {replica: dial for replica, _, _, dial, _ in found.members}
        self.agents = {replica: agents for replica, _, _, _, agents in found.members if agents}
        self.on_change()
        if addresses != self.addresses:
            self.addresses = addresses
            for call in self.on_replicas:
                call()
        # Behind the content: notifications come in the order of the commits, and the rows were read
        # after the mark's had come. So what was committed before the mark is known here now.
        for mark in found.marks:
            if (expected := self._marks.get(mark)) is not None and not expected.done():
                expected.set_result(None)
        self._changed.set()
        self._changed = asyncio.Event()
        if not self._ready.done():
            self._ready.set_result(None)

    async def _watch_it(self) -> None:
        """Have the thread leave a connection on which nothing comes, not even answers."""
        while True:
            await asyncio.sleep(WAIT_SECONDS)
            if time.monotonic() - self._heard > STALE_SECONDS:
                self._heard = time.monotonic()  # the next connection has as long
                await asyncio.to_thread(self._database.abort)

    async def close(self) -> None:
        """Listen no longer."""
        self._ends.set()
        if self._watch is not None:
            self._watch.cancel()
            # The thread looks at `_ends` each second, unless it waits for an answer: the abort ends
            # that. One that begins to wait behind the abort is left, as a daemon, after a while.
            await asyncio.to_thread(self._database.abort)
            await asyncio.to_thread(self._thread.join, STALE_SECONDS)
        self._database.close()


def _notes(connection: Connection) -> Iterator[psycopg.Notify]:
    """The notifications that have come; none if none comes within `WAIT_SECONDS`."""
    # The first one is waited for, and those that have come with it are taken at once: a hundred
    # kernels that were changed together are read again by one statement.
    yield from connection.notifies(timeout=WAIT_SECONDS, stop_after=1)
    yield from connection.notifies(timeout=0)


def _everything(connection: Connection) -> _Found:
    with connection.transaction():
        # One snapshot: a session is never shown without its kernel because the two were read apart.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        kernels, sessions = _kernels(connection, None), _sessions(connection, None)
        return _Found(kernels, None, sessions, None, _members(connection))


def _again(connection: Connection, told: Collection[str]) -> _Found:
    """Read again what the notifications name."""
    # Of what is told only the ids count. A row that has changed twice meanwhile is read as it is
    # now, and one that is not there any more is gone: so what is told late or twice does no harm.
    kernel_ids: set[str] = set()
    session_ids: set[str] = set()
    marks: set[str] = set()
    whole = False
    for payload in told:
        what, *ids = payload.split()
        if what == "kernels":
            kernel_ids.update(ids)
        elif what == "sessions":
            session_ids.update(ids)
        elif what == "mark":
            marks.update(ids)
        elif what == "replicas":
            whole = True  # the kernels of those that have gone are nobody's
    if whole:
        return _everything(connection)._replace(marks=marks)
    return _Found(
        _kernels(connection, kernel_ids),
        kernel_ids,
        _sessions(connection, session_ids),
        session_ids,
        _members(connection),
        marks,
    )


def _kernels(connection: Connection, ids: set[str] | None) -> list[KernelElsewhere]:
    if ids is not None and not ids:
        return []
    if ids is None:
        rows = connection.execute(f"{_KERNELS} ORDER BY created".encode())
    else:
        rows = connection.execute(f"{_KERNELS} WHERE id = ANY(%s)".encode(), ([*ids],))
    return [_elsewhere(*row) for row in rows.fetchall()]


def _give_up(connection: Connection, kernel_id: str) -> bool:
    # A replica of its host may come back in this moment. `membership.take` skips a row that is
    # locked, and this statement looks at ``replica`` again when it has waited for a take.
    gone = connection.execute(
        "DELETE FROM kernelkeep.kernel WHERE id = %s AND replica IS NULL RETURNING id", (kernel_id,)
    ).fetchone()
    if gone is None:
        return False
    for table in ("execution", "places"):
        connection.execute(f"DELETE FROM kernelkeep.{table} WHERE kernel_id = %s", (kernel_id,))
    sessions = connection.execute(
        "DELETE FROM kernelkeep.session WHERE kernel_id = %s RETURNING id", (kernel_id,)
    ).fetchall()
    tell(connection, "kernels", [kernel_id])
    tell(connection, "sessions", [session_id for (session_id,) in sessions])
    return True


def _elsewhere(
    kernel_id: str,
    replica: str | None,
    term: int,
    created: float,
    model: str,
    record: str,
    execution_state: str,
    is_reachable: bool,
) -> KernelElsewhere:
    whose = _whose(record)
    shown = model.encode() if is_reachable else _unreachable(model)
    owned = Ownership(whose.owner, whose.owner_groups, whose.shares)
    counts = execution_state != "dead"
    return KernelElsewhere(
        kernel_id, replica, term, created, shown, counts, owned, is_reachable=is_reachable
    )


def _unreachable(model: str) -> bytes:
    """A model as the API shows it while nobody can tell what the kernel does."""
    fields = msgspec.json.decode(model)
    if fields.get("execution_state") != "dead":
        fields |= {"execution_state": "unknown", "reason": NO_REPLICA}
    return msgspec.json.encode(fields)


def _sessions(connection: Connection, ids: set[str] | None) -> list[SharedSession]:
    if ids is not None and not ids:
        return []
    if ids is None:
        rows = connection.execute(f"{_SESSIONS} ORDER BY number".encode())
    else:
        rows = connection.execute(f"{_SESSIONS} WHERE id = ANY(%s)".encode(), ([*ids],))
    return [SharedSession(*row) for row in rows.fetchall()]


def _members(connection: Connection) -> list[tuple[str, str, str, str, list[str]]]:
    rows = connection.execute(
        "SELECT id, name, address, dial, agents FROM kernelkeep.replica ORDER BY joined"
    )
    return [(replica, *rest) for replica, *rest in rows.fetchall()]


def _replace(known: dict[str, Any], found: Collection[Any], ids: set[str] | None) -> None:
    """Put the rows that were found in the place of those with these ids, or of all."""
    if ids is None:
        known.clear()
    else:
        for gone in ids - {row.id for row in found}:
            known.pop(gone, None)
    for row in found:
        known[row.id] = row
