"""The registry of kernels that outlive the server, and this server's right to them.

One server process at a time has a state directory. Its right is a lock, which the operating system
releases when the process ends, however it ends. The lease in the registry only tells others which
process that is. Kernels are stored at once; executions, activity and the places of clients a little
later, in batches.

All statements run in one thread, in the order in which the event loop asks for them. So a kernel's
deletion comes behind every write that was asked for before.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from ...keeper.processes import start_time
from ...log_formats import about
from ..log.places import Places
from ..threads import DaemonThreads
from .lock import Lock
from .store import (
    ExecutionRecord,
    KernelRecord,
    Lease,
    RegistryStore,
    StoreAway,
    UnusableRegistry,
    check_store,
    open_registry,
)

__all__ = ["CLOSE_SECONDS", "Registry", "check_registry"]

logger = logging.getLogger(__name__)

BEHIND_SECONDS: Final = 0.02
"""Seconds between two batches."""

STORED_SECONDS: Final = 2.0
"""How long an execution waits for the disk (`Registry.stored`)."""

CLOSE_SECONDS: Final = 10.0
"""How long the end of the server waits for the last writes: no statement takes that long if the
disk answers (`app.managers.handover.store.LOCK_SECONDS`)."""

RENEW_SECONDS: Final = 5.0
"""Seconds between two renewals of the lease; failed writes are tried again then, too."""

_ERRORS: Final = (sqlite3.Error, StoreAway)
"""What the methods of a store raise while it cannot be read or written."""


def check_registry(state_dir: Path) -> None:
    """Raise `UnusableRegistry` if another server has this state directory, or it takes no writes.

    A file that has to be put aside raises nothing: `Registry` puts it aside.
    """
    if not state_dir.is_dir():
        return
    with contextlib.closing(Lock(state_dir)):
        check_store(state_dir)


class Registry:
    """This server's hold on the registry of its state directory.

    Make it inside a running event loop, and `close` it there. Raises `UnusableRegistry`.
    """

    renew_seconds = RENEW_SECONDS
    has_models = False
    """Whether the registry stores the models of kernels, for other servers to show."""

    def __init__(self, state_dir: Path) -> None:
        self._lock = Lock(state_dir)
        try:
            store, put_aside = self._open(state_dir)
        except BaseException:
            self._lock.close()
            raise
        if put_aside:
            logger.error("%s", put_aside)
        self._begin(store, put_aside)

    def _begin(self, store: RegistryStore, put_aside: str = "") -> None:
        self._store, self.put_aside = store, put_aside
        self._thread = DaemonThreads(1, "registry")
        # What waits for the next batch. Only the loop has these; the thread gets what a flush took.
        self._activity: dict[str, tuple[float, str, bytes]] = {}
        self._changed: dict[tuple[str, str], Callable[[], ExecutionRecord]] = {}
        self._forgotten: set[tuple[str, str]] = set()
        # The number of the latest change of each execution, until that change is written.
        self._unwritten: dict[tuple[str, str], int] = {}
        self._changes = 0
        self._places: dict[str, Callable[[], Places]] = {}
        self._missed: dict[str, KernelRecord | None] = {}  # failed writes; None: a deletion
        self._newest: dict[str, KernelRecord] = {}  # what was asked to be saved last
        self._failing = False
        self._told = False  # whether the failure was logged
        self._writer: asyncio.Task[None] | None = None
        self._flushes: set[asyncio.Task[None]] = set()
        self._renewal = asyncio.get_running_loop().create_task(self._renew(), name="renew lease")

    def _open(self, state_dir: Path) -> tuple[RegistryStore, str]:
        store, put_aside = open_registry(state_dir)
        pid = os.getpid()
        self._lease = Lease(secrets.token_hex(8), pid, start_time(pid) or "", time.time())
        try:
            store.take_lease(self._lease)
            self._lock.sign()
        except (OSError, sqlite3.Error) as error:
            store.close()
            raise UnusableRegistry(f"the registry in {state_dir} cannot be used: {error}") from None
        return store, put_aside

    async def close(self) -> None:
        """Write everything that waits, then let another server have the state directory.

        A disk that does not answer holds this up for `CLOSE_SECONDS`.
        """
        # The renewal first: it makes up for failures, too. The lock last: the next server reads
        # what is in the file when it has the lock.
        self._renewal.cancel()
        await asyncio.wait({self._renewal})
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._make_up()
                await self.flush()
                await self._call(self._store.close)
        except TimeoutError:
            logger.error("the registry does not answer: the next server may not know what was last")
            # The lock stays until the process ends: the thread may still write what it is at, over
            # what the next server has written by then.
            return
        finally:
            self._thread.shutdown()
        self._lock.close()

    async def _call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        # The shield keeps a cancelled caller from cancelling its work: other callers rely on that
        # being done, in its place in the thread's order. There is no bound here: SQLite bounds the
        # wait for its locks, and while a disk hangs all writes wait. A caller that must not wait so
        # long has a bound of its own.
        loop = asyncio.get_running_loop()
        return await asyncio.shield(loop.run_in_executor(self._thread, work, *arguments))

    async def _write(self, work: Callable[..., None], *arguments: Any) -> bool:
        """Run a write; False if it failed. The first failure in a row is logged."""
        try:
            await self._call(work, *arguments)
        except _ERRORS as error:
            if not self._told:
                logger.error(
                    "the registry cannot be written: %s; it is tried again, and what it misses "
                    "when this server ends the next will not know",
                    error,
                )
            self._failing = self._told = True
            return False
        return True

    @property
    def fails(self) -> bool:
        """Whether the last write has failed."""
        return self._failing

    # Kernels

    async def load(self) -> list[KernelRecord]:
        """The record of every kernel that an earlier server has left."""
        records: list[KernelRecord] = await self._call(self._store.load)
        return records

    async def save(self, record: KernelRecord) -> None:
        """Store a kernel's record at once; after a failure, at the next renewal of the lease."""
        # Before the await: `_make_up` may come to this kernel while the thread writes, and must
        # write this record and no older one. A kernel stays in `_missed` until a write of its
        # newest record has succeeded.
        if record.id in self._missed:
            self._missed[record.id] = record
        self._activity.pop(record.id, None)  # the record has a later one
        self._newest[record.id] = record
        try:
            saved = await self._write(self._present.save, record)
        except asyncio.CancelledError:  # the write may have failed: `_make_up` writes once more
            if self._newest.get(record.id) is record:
                self._missed[record.id] = record
            raise
        # Another save or a deletion came meanwhile: the thread does that after this one, and the
        # caller of that one sets `_missed`.
        if self._newest.get(record.id) is not record:
            return
        if saved:
            self._missed.pop(record.id, None)
        else:
            self._missed[record.id] = record

    async def delete(self, kernel_id: str) -> None:
        """Delete a kernel and what it has at once; after a failure, at the next renewal."""
        # What a flush has already taken is written by the thread before the deletion, and deleted
        # with the rest. An activity that is written after the deletion finds no row to update.
        self._activity.pop(kernel_id, None)
        self._places.pop(kernel_id, None)
        self._drop_executions(kernel_id)
        self._missed.pop(kernel_id, None)
        self._newest.pop(kernel_id, None)
        # If a kernel of the same id is saved meanwhile, the row is that one's.
        deleted = await self._write(self._present.delete, kernel_id)
        if not deleted and kernel_id not in self._newest:
            self._missed[kernel_id] = None

    def touch(
        self, kernel_id: str, last_activity: float, execution_state: str, model: bytes = b""
    ) -> None:
        """Store soon a kernel's last activity (seconds since the epoch), its state and model."""
        self._activity[kernel_id] = last_activity, execution_state, model
        self._write_soon()

    # Places of clients

    async def places(self, kernel_id: str) -> Places | None:
        """The places of a kernel's clients, if there are any. Raises `UnusableRegistry`."""
        try:
            found: Places | None = await self._call(self._store.load_places, kernel_id)
        except _ERRORS as error:
            about(logger, kernel_id=kernel_id).error(
                "the places of the clients of kernel %s cannot be read: %s", kernel_id, error
            )
            raise UnusableRegistry(str(error)) from error
        return found

    def note_places(self, kernel_id: str, places: Callable[[], Places]) -> None:
        """Store the places of a kernel's clients soon, as ``places`` then returns them."""
        self._places[kernel_id] = places
        self._write_soon()

    # Executions

    async def executions(self, kernel_id: str) -> list[ExecutionRecord]:
        """A kernel's executions in the order in which they were asked for; none if unreadable."""
        try:
            found: list[ExecutionRecord] = await self._call(self._store.load_executions, kernel_id)
        except _ERRORS as error:
            about(logger, kernel_id=kernel_id).error(
                "the executions of kernel %s cannot be read: %s", kernel_id, error
            )
            return []
        return found

    def note(
        self, kernel_id: str, execution_id: str, record: Callable[[], ExecutionRecord]
    ) -> None:
        """Store an execution soon, as ``record`` then returns it."""
        # The record is made when it is written: an execution that changes ten times between two
        # batches is encoded once. In one batch a key is changed or forgotten, never both.
        self._forgotten.discard((kernel_id, execution_id))
        self._changed[kernel_id, execution_id] = record
        self._count_change(kernel_id, execution_id)

    def forget(self, kernel_id: str, execution_id: str) -> None:
        """Delete an execution soon."""
        self._changed.pop((kernel_id, execution_id), None)
        self._forgotten.add((kernel_id, execution_id))
        self._count_change(kernel_id, execution_id)

    def _count_change(self, kernel_id: str, execution_id: str) -> None:
        self._changes += 1
        self._unwritten[kernel_id, execution_id] = self._changes
        self._write_soon()

    def _drop_executions(self, kernel_id: str) -> None:
        """Write nothing more of a kernel's executions, and put back nothing that fails."""
        self._forgotten = {key for key in self._forgotten if key[0] != kernel_id}
        for key in [key for key in self._unwritten if key[0] == kernel_id]:
            self._changed.pop(key, None)
            del self._unwritten[key]

    # Writing in batches

    @property
    def _has_changes(self) -> bool:
        return bool(self._activity or self._changed or self._forgotten or self._places)

    def _write_soon(self) -> None:
        # There is one writer at most. It sees a change that comes while it writes or sleeps: it
        # awaits nothing between the last look of its loop and `self._writer = None`.
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(
                self._write_behind(), name="write registry"
            )

    async def _write_behind(self) -> None:
        try:
            while self._has_changes:
                await self.flush()  # the first change at once, those that come meanwhile together
                await asyncio.sleep(BEHIND_SECONDS)
                # What could not be written was put back: without this the loop would try for ever.
                if self._failing:  # the next change or renewal begins another writer
                    return
        finally:
            self._writer = None

    async def stored(self, seconds: float = STORED_SECONDS) -> bool:
        """Return when every change until now is stored, or after so many ``seconds``.

        Returns whether a write of each change was tried by then; failed writes are tried again.
        """
        # The flush goes on after the bound: a cancelled one would lose the changes that it took.
        flush = asyncio.get_running_loop().create_task(self._flush_all(), name="flush registry")
        self._flushes.add(flush)
        flush.add_done_callback(self._flushed)
        await asyncio.wait({flush}, timeout=seconds)
        return flush.done() and not flush.cancelled() and flush.exception() is None

    def _flushed(self, flush: asyncio.Task[None]) -> None:
        self._flushes.discard(flush)
        if not flush.cancelled():
            flush.exception()  # or asyncio would log it: `stored` may have given the flush up

    async def execution_stored(
        self,
        kernel_id: str,  # noqa: ARG002
        execution_id: str,  # noqa: ARG002
        term: int,  # noqa: ARG002
    ) -> None:
        """Return when an execution is stored, or when the disk has taken too long.

        ``term`` is the kernel's (`term_of`) when the execution was asked for.
        """
        await self.stored()

    async def _flush_all(self) -> None:
        await self.flush()
        # The one thread works in order: when it comes to this call, it has tried all writes of
        # earlier flushes. A change that could not be written may be in a later flush by now.
        await self._call(lambda: None)

    async def flush(self) -> None:
        """Write every change that waits."""
        # The changes are taken before the first await. What changes while the thread writes goes
        # into the new dicts, which another flush may take before this one has ended. So a failed
        # write puts an execution back only if this flush has taken its latest change.
        activity, self._activity = self._activity, {}
        changed, self._changed = self._changed, {}
        forgotten, self._forgotten = self._forgotten, set()
        moved, self._places = self._places, {}
        ids = {key[0] for key in (*changed, *forgotten)} | activity.keys() | moved.keys()
        terms = {kernel_id: self.term_of(kernel_id) for kernel_id in ids}
        taken = {key: self._unwritten[key] for key in (*changed, *forgotten)}
        touched = [(key, *what) for key, what in activity.items()]
        records = _records(changed)
        places = [each() for each in moved.values()]
        if not (touched or records or forgotten or places):
            return
        # One call to the thread for all of it: a record that is saved meanwhile is newer, and the
        # thread writes that one later.
        done = await self._write(_write_all, self._present, touched, records, forgotten, places)
        latest = {key for key, number in taken.items() if self._unwritten.get(key) == number}
        if done:
            for key in latest & (changed.keys() | forgotten):
                del self._unwritten[key]
            return
        # Nothing is put back of a kernel that another replica has taken meanwhile, even if this one
        # has taken it back since, in a later term.
        own = {kernel_id for kernel_id, term in terms.items() if self.term_of(kernel_id) == term}
        # The whole batch may have failed, or a part of it (`_write_all`): the part that succeeded
        # is written again, which does no harm.
        latest = {key for key in latest if key[0] in own}
        self._changed |= {key: changed[key] for key in latest & changed.keys()}
        self._forgotten |= latest & forgotten
        for kernel_id in own & activity.keys():
            self._activity.setdefault(kernel_id, activity[kernel_id])
        for kernel_id in own & moved.keys():
            self._places.setdefault(kernel_id, moved[kernel_id])

    def term_of(self, kernel_id: str) -> int:  # noqa: ARG002
        """The term in which this server has a kernel; 0 if it is not one of several replicas."""
        return 0

    @property
    def _present(self) -> RegistryStore:
        """The store, for writes that go with the present terms of this server's kernels."""
        return self._store

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self.renew_seconds)
            # A failure needs no log line here: `_write` has one, and the lock is what counts. What
            # has failed is tried once more, and `_failing` is set anew if it fails again.
            with contextlib.suppress(*_ERRORS):
                await self._renew_once()
                self._failing = False
            await self._make_up()
            if self._told and not self._failing:
                logger.info("the registry can be written again")
                self._told = False

    async def _renew_once(self) -> None:
        self._lease.renewed = time.time()
        await self._call(self._store.take_lease, self._lease)

    async def _make_up(self) -> None:
        """Write what could not be written before."""
        for kernel_id in [*self._missed]:  # a copy: both calls change it
            # A newer record may have been written while this loop waited for an older kernel's.
            if kernel_id not in self._missed:
                continue
            record = self._missed[kernel_id]
            try:
                if record is None:
                    await self.delete(kernel_id)
                else:
                    await self.save(record)
            except Exception:  # a provisioner's data that cannot be encoded would fail for ever
                self._missed.pop(kernel_id, None)
                about(logger, kernel_id=kernel_id).exception(
                    "kernel %s: the next server will not know it", kernel_id
                )
        if self._has_changes:
            self._write_soon()


def _records(
    changed: dict[tuple[str, str], Callable[[], ExecutionRecord]],
) -> list[ExecutionRecord]:
    """The records of executions that have changed; one that cannot be made is taken out and told.

    One execution whose data cannot be encoded must not keep all others from being stored.
    """
    records = []
    for key in [*changed]:
        try:
            records.append(changed[key]())
        except Exception:
            del changed[key]
            kernel_id, execution_id = key
            told = about(logger, kernel_id=kernel_id, execution_id=execution_id)
            told.exception("execution %s cannot be stored for the next server", execution_id)
    return records


def _write_all(
    store: RegistryStore,
    touched: list[tuple[str, float, str, bytes]],
    records: list[ExecutionRecord],
    forgotten: set[tuple[str, str]],
    places: list[Places],
) -> None:
    # Executions first, as they matter most: places and activities are not tried if that fails. The
    # three are separate transactions: the next server may see one without the others.
    if records or forgotten:
        store.save_executions(records, forgotten)
    if places:
        store.save_places(places)
    if touched:
        store.touch(touched)
