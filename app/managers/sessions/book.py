"""The sessions of all owners: in memory, which answers requests, and in a database."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections import Counter
from collections.abc import Callable, Collection, Container, Iterable
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Final
from weakref import WeakValueDictionary

from ...log_formats import about
from ..handover.elsewhere import Known
from ..handover.store import StoreAway
from ..threads import DaemonThreads
from .store import Session, SessionKeeping

__all__ = ["Everywhere", "SessionBook", "farewell"]

logger = logging.getLogger(__name__)

WRITE_SECONDS: Final = 10.0
"""How long a change may take to be stored before it is given up."""

ABORT_SECONDS: Final = 2.0
"""How long a change that is given up may take to fail; its request waits no longer."""


class SessionBook:
    """The sessions of all owners, in memory and in a database.

    The sessions in memory answer all requests: every answer needs the state of their kernels
    anyway. Each change is made in memory first and then stored by one thread. So no disk holds up
    the event loop, and the database gets the changes in their order. An answer waits until its
    change is stored. A change that cannot be stored (the disk is full) is logged and still holds: a
    notebook must not lose a running kernel by that.

    Where replicas share the database, other replicas change it, too (`read_again`).
    """

    def __init__(self, kernels: Container[str], store: SessionKeeping) -> None:
        self._kernels = kernels
        self._store = store
        self._sessions: dict[str, Session] = {}
        self._by_owner: dict[str, dict[str, Session]] = {}
        for session in store.load():
            self._put(session)
        self._writer = DaemonThreads(1, "sessions")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._writing: Counter[str] = Counter()

    def get(self, session_id: str) -> Session | None:
        """The session with this id."""
        return self._sessions.get(session_id)

    def all(self) -> list[Session]:
        """Every session, in the order in which they were made."""
        return [*self._sessions.values()]

    def of_owners(self, owners: Iterable[str]) -> list[Session]:
        """The sessions of some owners."""
        return [session for owner in owners for session in self._by_owner.get(owner, {}).values()]

    def has_kernel(self, session: Session) -> bool:
        """Whether the session's kernel exists, here or at another replica (`Everywhere`)."""
        return session.kernel_id in self._kernels

    def turn(self, key: str) -> asyncio.Lock:
        """The lock of an owner's path, or of a session's id, in this server.

        The dict's references are weak, so a lock exists as long as a request holds or awaits it.
        """
        return self._turns.setdefault(key, asyncio.Lock())

    def turn_of_all(self, owner: str, path: str) -> AbstractAsyncContextManager[None]:
        """The turn to make an owner's session of a path, among all servers with the database.

        In the turn, all sessions made before are known. Raises `RegistryUnavailable`.
        """
        return self._store.turn(owner, path)

    async def keep(self, session: Session) -> None:
        """Add a session, or put it in the place of the one with its id, and store it."""
        self._put(session)
        await self._write(partial(self._store.save, session), [session.id])

    async def forget(self, *sessions: Session) -> None:
        """Forget sessions."""
        for session in sessions:
            self._remove(session.id)
        ids = [session.id for session in sessions]
        await self._write(partial(self._store.delete, ids), ids)

    def read_again(self) -> None:
        """Load the sessions again: another replica has changed the database.

        A change of this server that is not stored yet holds.
        """
        # A loaded session may be older than the one in memory that this server is about to write.
        # That write tells all replicas, this server included, to read once more.
        found = {session.id: session for session in self._store.load()}
        for session_id in self._sessions.keys() - found.keys() - self._writing.keys():
            self._remove(session_id)
        for session in found.values():
            if session.id not in self._writing:
                self._put(session)

    async def forget_gone(self, sessions: Iterable[Session]) -> None:
        """Forget those of the sessions whose kernel is gone."""
        # Nothing is awaited between the look and `forget`: no kernel of such an id comes between.
        gone = [session for session in sessions if not self.has_kernel(session)]
        for session in gone:
            about(logger, kernel_id=session.kernel_id).info("%s", farewell(session))
        if gone:
            await self.forget(*gone)

    async def close(self) -> None:
        """Store the changes that are not stored yet, and close the database. The kernels go on.

        A disk that does not answer holds this up no longer than a change; it is logged then.
        """
        # The last work of the thread: every change was handed to it before, and it works in order.
        try:
            await self._write(self._store.close)
        finally:
            self._writer.shutdown()

    def _put(self, session: Session) -> None:
        self._sessions[session.id] = session
        self._by_owner.setdefault(session.owner, {})[session.id] = session

    def _remove(self, session_id: str) -> None:
        session = self._sessions.pop(session_id, None)
        if session is not None:
            own = self._by_owner[session.owner]
            del own[session.id]
            if not own:
                del self._by_owner[session.owner]

    async def _write(self, work: Callable[[], None], ids: Collection[str] = ()) -> None:
        # Nothing is awaited between the change in memory and this: the thread gets the changes in
        # their order. A caller that is cancelled leaves its write to the thread, as `asyncio.wait`
        # cancels nothing that it waits for.
        written = asyncio.wrap_future(self._writer.submit(work))
        self._writing.update(ids)
        written.add_done_callback(partial(self._on_written, ids))
        done, _ = await asyncio.wait({written}, timeout=WRITE_SECONDS)
        if not done:
            self._store.abort()
            done, _ = await asyncio.wait({written}, timeout=ABORT_SECONDS)
        if not done:
            logger.error("a change of the sessions is not stored yet: its disk does not answer")

    def _on_written(self, ids: Collection[str], written: asyncio.Future[None]) -> None:
        # A count, as two changes of one session may be under way; a count of 0 is dropped.
        self._writing -= Counter(ids)
        error = written.exception()
        if error is not None:
            known = isinstance(error, sqlite3.Error | StoreAway)
            text = "a change of the sessions could not be stored: %s"
            logger.error(text, error, exc_info=None if known else error)


class Everywhere:
    """The ids of the kernels ``here``, of those that ``adopting`` has, and of other replicas'.

    A kernel that an earlier server has left is not listed here until its adoption has begun. Its
    sessions must not be taken meanwhile for those of a kernel that is gone.
    """

    def __init__(self, here: Container[str], adopting: Container[str], known: Known) -> None:
        self._here = here
        self._adopting = adopting
        self._known = known

    def __contains__(self, kernel_id: object) -> bool:
        parts = (self._here, self._adopting, self._known.kernels)
        return any(kernel_id in part for part in parts)


def farewell(session: Session) -> str:
    """Why a session whose kernel is gone is gone, too."""
    return (
        f"Kernel '{session.kernel_id}' appears to have been culled or died unexpectedly, "
        f"invalidating session '{session.id}'. The session has been removed."
    )
