"""The registry of kernels that outlive the server, and this server's right to them.

One server process at a time has a state directory. The right is a lock that the operating system
takes back when the process ends, however it ends; the lease in the registry tells others whose it
is. What need not be known at once is written behind, in batches.
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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

from ...keeper.processes import start_time
from .store import (
    ExecutionRecord,
    KernelRecord,
    Lease,
    RegistryStore,
    UnusableRegistry,
    check_store,
    open_registry,
)

try:
    import fcntl
except ImportError:  # Windows, where no kernel can be kept
    fcntl = None  # type: ignore[assignment]

__all__ = ["Lock", "Registry", "check_registry"]

logger = logging.getLogger(__name__)

LOCK: Final = "registry.lock"

BEHIND_SECONDS: Final = 0.02
"""How long what is written behind may wait for more."""

STORED_SECONDS: Final = 2.0
"""How long a disk may take before nobody waits any longer for what is written there."""

RENEW_SECONDS: Final = 5.0
"""How often the lease is renewed, and what could not be written tried again."""


def check_registry(state_dir: Path) -> None:
    """Raise `UnusableRegistry` if another server has this state directory, or it takes no writes.

    A file that is to be put aside is left for `Registry` to do so.
    """
    if not state_dir.is_dir():
        return
    with contextlib.closing(Lock(state_dir)):
        check_store(state_dir)


class Lock:
    """The right to a state directory, until it is closed or this process ends.

    Raises `UnusableRegistry` when another process has it.
    """

    def __init__(self, state_dir: Path) -> None:
        path = state_dir / LOCK
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise UnusableRegistry(f"{path} cannot be used: {error.strerror}") from None
        if fcntl is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            raise UnusableRegistry(
                f"{state_dir} is in use by another server (process {holder or 'unknown'}), which "
                "keeps its kernels there: stop that one, give this one a state directory of its "
                "own, or start it with on_shutdown=stop"
            ) from None

    def sign(self) -> None:
        """Write down who has it. Raises `OSError`."""
        os.pwrite(self._descriptor, f"{os.getpid():<20}".encode(), 0)

    def close(self) -> None:
        """Let another process have it."""
        os.close(self._descriptor)


class Registry:
    """This server's hold on the registry of its state directory.

    Make it inside a running event loop, and `close` it there. Raises `UnusableRegistry`.
    """

    def __init__(self, state_dir: Path) -> None:
        self._lock = Lock(state_dir)
        try:
            self._store, self.put_aside = self._open(state_dir)
        except BaseException:
            self._lock.close()
            raise
        if self.put_aside:
            logger.error("%s", self.put_aside)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="registry")
        self._activity: dict[str, tuple[float, str]] = {}
        self._changed: dict[tuple[str, str], Callable[[], ExecutionRecord]] = {}
        self._forgotten: set[tuple[str, str]] = set()
        self._missed: dict[str, KernelRecord | None] = {}  # to be written; None: deleted
        self._failing = False
        self._told = False  # that it fails
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
        """Write what has waited, and let another server have the state directory."""
        self._renewal.cancel()
        await asyncio.wait({self._renewal})
        await self._make_up()
        await self.flush()
        await self._call(self._store.close)
        self._thread.shutdown()
        self._lock.close()

    async def _call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    async def _write(self, work: Callable[..., None], *arguments: Any) -> bool:
        """Write; where that fails it is said once, and the kernels run on."""
        try:
            await self._call(work, *arguments)
        except sqlite3.Error as error:
            if not self._told:
                logger.error(
                    "the registry cannot be written: %s; it is tried again, and what it misses "
                    "when this server ends the next will not know",
                    error,
                )
            self._failing = self._told = True
            return False
        return True

    # Kernels

    async def load(self) -> list[KernelRecord]:
        """Every kernel that a server before this one has left."""
        records: list[KernelRecord] = await self._call(self._store.load)
        return records

    async def save(self, record: KernelRecord) -> None:
        """Store a kernel, at once."""
        self._missed.pop(record.id, None)
        self._activity.pop(record.id, None)  # the record tells later
        if not await self._write(self._store.save, record):
            self._missed[record.id] = record

    async def delete(self, kernel_id: str) -> None:
        """Forget a kernel, at once."""
        self._activity.pop(kernel_id, None)
        for key in [key for key in self._changed if key[0] == kernel_id]:
            del self._changed[key]
        self._missed.pop(kernel_id, None)
        if not await self._write(self._store.delete, kernel_id):
            self._missed[kernel_id] = None

    def touch(self, kernel_id: str, last_activity: float, execution_state: str) -> None:
        """Store soon what a kernel does."""
        self._activity[kernel_id] = last_activity, execution_state
        self._write_soon()

    # Executions

    async def executions(self, kernel_id: str) -> list[ExecutionRecord]:
        """Those of a kernel in the order in which they were asked for; none if unreadable."""
        try:
            found: list[ExecutionRecord] = await self._call(self._store.load_executions, kernel_id)
        except sqlite3.Error as error:
            logger.error(
                "the executions of kernel %s cannot be read: %s",
                kernel_id,
                error,
                extra={"kernel_id": kernel_id},
            )
            return []
        return found

    def note(
        self, kernel_id: str, execution_id: str, record: Callable[[], ExecutionRecord]
    ) -> None:
        """Store an execution soon, as it is then."""
        self._forgotten.discard((kernel_id, execution_id))
        self._changed[kernel_id, execution_id] = record
        self._write_soon()

    def forget(self, kernel_id: str, execution_id: str) -> None:
        """Forget an execution soon."""
        self._changed.pop((kernel_id, execution_id), None)
        self._forgotten.add((kernel_id, execution_id))
        self._write_soon()

    # Writing behind

    def _write_soon(self) -> None:
        if self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(
                self._write_behind(), name="write registry"
            )

    async def _write_behind(self) -> None:
        try:
            while self._activity or self._changed or self._forgotten:
                await self.flush()  # at once, and what comes meanwhile together
                await asyncio.sleep(BEHIND_SECONDS)
                if self._failing:  # until there is more, or it is tried again
                    return
        finally:
            self._writer = None

    async def stored(self) -> None:
        """Return when what was to be stored soon is stored, or after `STORED_SECONDS`."""
        flush = asyncio.get_running_loop().create_task(self._flush_all(), name="flush registry")
        self._flushes.add(flush)
        flush.add_done_callback(self._flushes.discard)
        await asyncio.wait({flush}, timeout=STORED_SECONDS)

    async def _flush_all(self) -> None:
        await self.flush()
        await self._call(lambda: None)  # after what others have begun to write

    async def flush(self) -> None:
        """Write now what has waited."""
        activity, self._activity = self._activity, {}
        changed, self._changed = self._changed, {}
        forgotten, self._forgotten = self._forgotten, set()
        touched = [(key, when, state) for key, (when, state) in activity.items()]
        records = [record() for record in changed.values()]
        if not (touched or records or forgotten):
            return
        # In one piece: a record that is saved meanwhile is newer, and the thread writes in the
        # order in which it is asked to.
        if not await self._write(self._write_all, touched, records, forgotten):
            for key, record in changed.items():
                if key not in self._forgotten:
                    self._changed.setdefault(key, record)

    def _write_all(
        self,
        touched: list[tuple[str, float, str]],
        records: list[ExecutionRecord],
        forgotten: set[tuple[str, str]],
    ) -> None:
        if records or forgotten:
            self._store.save_executions(records, forgotten)
        if touched:
            self._store.touch(touched)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            self._lease.renewed = time.time()
            with contextlib.suppress(sqlite3.Error):  # said elsewhere, and the lock is what counts
                await self._call(self._store.take_lease, self._lease)
                self._failing = False
            await self._make_up()
            if self._told and not self._failing:
                logger.info("the registry can be written again")
                self._told = False

    async def _make_up(self) -> None:
        """Write what could not be written."""
        for kernel_id in [*self._missed]:
            if kernel_id not in self._missed:  # something newer was written
                continue
            record = self._missed[kernel_id]
            if record is None:
                await self.delete(kernel_id)
            else:
                await self.save(record)
        if self._changed:
            self._write_soon()
