"""The kernels, sessions and addresses of all replicas, as last read from the registry.

A thread listens to the database (LISTEN, NOTIFY), and reads again the rows that have changed. When
its connection was lost, it reads all rows anew. So the directory is as old as a notification takes;
while the database is away it is older, and `is_fresh` is soon False.
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
"""How often the database is asked something while no notification comes."""

STALE_SECONDS: Final = 15.0
"""How long the database may not answer before the connection to it is cut."""

RETRY_SECONDS: Final = 0.5


class _Whose(msgspec.Struct):
    """The part of a kernel's record that says who owns the kernel, and with whom it is shared."""

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
    no replica has a kernel. The functions in `on_replicas` are called when replicas have come or
    gone.
    """

    def __init__(self, url: str, wake: Callable[[], None]) -> None:
        self.kernels: dict[str, KernelElsewhere] = {}
        self.sessions: dict[str, SharedSession] = {}
        self.addresses: dict[str, str] = {}
        """By replica: the address (`Replica.address`) at which others of its host reach it."""
        self.dials: dict[str, str] = {}
        """By replica: ``host:port`` where replicas of other hosts dial it; empty for nowhere."""
        self.names: dict[str, str] = {}
        """By replica: its name."""
        self.agents: dict[str, list[str]] = {}
        """By replica that listens for keepers: the addresses at which they dial it."""
        self.changes = 0
        """The number of changes of kernels so far."""
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
        """Begin to listen; returns when all rows have been read once. Raises `StoreAway`."""
        self._thread.start()
        self._watch = self._loop.create_task(self._watch_it(), name="directory's watch")
        done, _ = await asyncio.wait({self._ready}, timeout=STALE_SECONDS)
        if not done:
            raise StoreAway("the database does not answer")

    @property
    def is_fresh(self) -> bool:
        """Whether the database has answered lately."""
        return time.monotonic() - self._heard < PING_SECONDS + WAIT_SECONDS

    async def changed(self) -> None:
        """Return when rows were read again the next time."""
        await self._changed.wait()  # each change has an event of its own (`_apply`)

    def expect(self, mark: str) -> asyncio.Future[None]:
        """A future that is done when this ``mark`` is heard.

        By then the directory has all that was committed in the registry before the mark was told
        (`tell`). Call this before that. The future is never done if the notification is lost with
        its connection; cancel it when you do not wait for it any more.
        """
        expected = self._marks[mark] = self._loop.create_future()

        def forget(_: object) -> None:
            # The loop calls this a turn later: by then the same mark may be expected anew.
            if self._marks.get(mark) is expected:
                del self._marks[mark]

        expected.add_done_callback(forget)
        return expected

    def forget(self, kernel_id: str) -> None:
        """Remove a kernel that is gone, before the database tells of its deletion."""
        # The thread may have read the row before the kernel was deleted, and the loop may apply
        # that after this call: then the kernel is shown until the deletion is heard, a moment
        # later.
        if self.kernels.pop(kernel_id, None) is not None:
            self.changes += 1

    async def look(self, kernel_id: str) -> KernelElsewhere | None:
        """Ask the database for one kernel that is not known here. Raises `StoreAway`."""
        found = await self._once(lambda one: _kernels(one, {kernel_id}))
        return found[0] if found else None

    async def give_up(self, kernel_id: str) -> bool:
        """As `Known.give_up`. The kernel's process is ended when a replica of its host is back."""
        is_gone = await self._once(lambda one: _give_up(one, kernel_id))
        if is_gone:
            about(logger, kernel_id=kernel_id).warning(
                "kernel %s was given up: no replica of its host is there", kernel_id
            )
            self.forget(kernel_id)
        return is_gone

    async def _once(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` with a connection of its own, and return its result. Raises `StoreAway`."""
        # The directory's other connection nearly always waits for notifications. If the caller
        # gives up, the thread goes on, and ends by the bounds of `Database`.
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
        # Whatever ends the connection, the next one begins by reading all rows: notifications that
        # were sent between the two are lost, as PostgreSQL has them only for those who listen.
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
        # LISTEN comes first: a change that is committed after the rows were read is notified, and
        # its rows are read again.
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
        # The thread hands over the rows that it has read: only the loop changes the dicts. The loop
        # makes calls in the order in which they were asked for, so older rows never replace newer.
        self._heard = time.monotonic()
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._apply, found)

    # The event loop

    def _apply(self, found: _Found) -> None:
        # Nothing is awaited in here: code that waits for a mark, or for a change, sees all of it.
        _replace(self.kernels, found.kernels, found.kernel_ids)
        if found.kernels or found.kernel_ids is None or found.kernel_ids:
            self.changes += 1
        # A replica that ends frees its kernels one after the other, before its own row goes.
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
        # After the dicts: notifications come in the order of the commits, and the rows were read
        # after that of the mark had come. So the dicts have what was committed before the mark.
        for mark in found.marks:
            if (expected := self._marks.get(mark)) is not None and not expected.done():
                expected.set_result(None)
        self._changed.set()
        self._changed = asyncio.Event()
        if not self._ready.done():
            self._ready.set_result(None)

    async def _watch_it(self) -> None:
        """Cut the thread's connection when nothing comes over it any more, not even answers."""
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
            # such a wait. A thread that begins one after the abort is left behind, as a daemon.
            await asyncio.to_thread(self._database.abort)
            await asyncio.to_thread(self._thread.join, STALE_SECONDS)
        self._database.close()


def _notes(connection: Connection) -> Iterator[psycopg.Notify]:
    """The notifications that have come; none if none comes within `WAIT_SECONDS`."""
    # The first notification is waited for, and those that have come with it are taken at once: the
    # rows of a hundred kernels that have changed together are read again by one statement.
    yield from connection.notifies(timeout=WAIT_SECONDS, stop_after=1)
    yield from connection.notifies(timeout=0)


def _everything(connection: Connection) -> _Found:
    with connection.transaction():
        # Both tables are read in one snapshot: otherwise a session could come without its kernel.
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        kernels, sessions = _kernels(connection, None), _sessions(connection, None)
        return _Found(kernels, None, sessions, None, _members(connection))


def _again(connection: Connection, told: Collection[str]) -> _Found:
    """Read again the rows that the notifications name."""
    # A notification has ids only. A row that has changed twice meanwhile is read as it is now, and
    # one that is not found is gone: so a notification that comes late or twice does no harm.
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
            whole = True  # all kernels of a replica that has gone have changed: none has them now
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
    # A replica of the kernel's host may come back just now, and take the kernel. `membership.take`
    # skips a row that is locked, and this statement checks ``replica`` again after it has waited
    # for a take: one of the two has the row.
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
    """A kernel's model as the API shows it while no replica reaches the kernel."""
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
    """Replace the rows with these ids by those that were found; all rows if ``ids`` is None."""
    if ids is None:
        known.clear()
    else:
        for gone in ids - {row.id for row in found}:
            known.pop(gone, None)
    for row in found:
        known[row.id] = row
