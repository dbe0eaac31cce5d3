"""Where a keeper is found: the newest in its own directory, an older one where it was set aside."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from ....keeper.notes import LAUNCHING, Note, Notes
from ....keeper.output import pipe_of
from ....keeper.processes import leader_that_writes
from ....keeper.protocol import (
    PROTOCOL,
    SPOKEN,
    aside_dirs,
    check_private,
    keeper_dir,
    new_aside_dir,
    open_dir,
)
from ...errors import KeeperUnavailable
from .link import KeeperLink, LinkOwner
from .starting import execute_keeper

__all__ = ["START_SECONDS", "AsidePlace", "KeeperGone", "NewestPlace", "Place"]

logger = logging.getLogger(__name__)

START_SECONDS: Final = 30.0
"""How long a keeper may take to start, and one that is drained to be gone."""

CLOSE_SECONDS: Final = 2.0
"""How long a keeper without kernels, which the server has left, may take to end."""

PAUSE_SECONDS: Final = 0.05
"""The pause between two looks whether a keeper has ended."""

TAKEN_SECONDS: Final = 0.2
"""The pause before a keeper that another server is starting is looked for again."""

Drained = Callable[[Sequence[Any]], None]
"""Called with the records (`Kept`) of a drained keeper, which has let go of its kernels."""


class KeeperGone(KeeperUnavailable):
    """A keeper that was set aside has ended, or was killed. There will be no other in its place."""

    def __init__(self) -> None:
        super().__init__("The keeper of the version before has ended")


class Place(Protocol):
    """Where one keeper is."""

    patience: float
    """How long a keeper may take to be there, in seconds."""

    async def find(self, owner: LinkOwner, on_drained: Drained) -> KeeperLink:
        """A connection to the keeper at this place, if this server speaks its version.

        A keeper of another version is drained. Raises `KeeperUnavailable`, `OSError`, `TooOpen` and
        `Garbled`.
        """

    async def close(self, *, is_empty: bool) -> None:
        """Leave the keeper, as the server ends. The keeper has no kernels if it ``is_empty``."""


class NewestPlace:
    """The place of the keeper of this version, which is started if there is none.

    A keeper of the version before is set aside, and ``on_older`` called with the directory of each
    keeper that was. Without ``on_older`` it is drained like one of any other version.
    """

    patience: float = START_SECONDS
    """As `Place.patience`."""

    def __init__(self, state_dir: Path, on_older: Callable[[Path], None] | None = None) -> None:
        self._state_dir = state_dir
        self._on_older = on_older
        self._processes: list[subprocess.Popen[bytes]] = []

    async def find(self, owner: LinkOwner, on_drained: Drained) -> KeeperLink:
        """As `Place.find`."""
        while True:
            # Opened again at each turn: the directory may have been renamed (`_set_aside`).
            directory = await asyncio.to_thread(open_dir, self._state_dir)
            try:
                link = await KeeperLink.open(directory, keeper_dir(self._state_dir), owner)
                if link is not None and link.protocol == PROTOCOL:
                    return link
                on_older = self._on_older
                if link is not None and link.protocol in SPOKEN and on_older is not None:
                    await self._set_aside(link, directory, on_older)
                    continue
            finally:
                os.close(directory)
            if link is None:
                await self._start()
            else:
                await _drain(link, on_drained)

    async def _set_aside(
        self, link: KeeperLink, directory: int, on_older: Callable[[Path], None]
    ) -> None:
        """Rename the directory of an older keeper, which serves its kernels on from there.

        Whether this server is killed before or after the rename, the next server finds the keeper.
        No other keeper can start in the directory meanwhile: the older one has its lock.
        """
        # This link belongs to the newest keeper's client. Another client makes its own link, by
        # `AsidePlace`.
        await link.close()
        # Replicas that start at the same time find the same keeper, and one of them renames its
        # directory. After that the path leads to the directory of a newer keeper, or nowhere, and
        # the others rename nothing.
        path = keeper_dir(self._state_dir)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(directory)):
                os.rename(path, new_aside_dir(self._state_dir, link.protocol))
        text = "the keeper, process %d, is of the version before: it goes on with its kernels"
        logger.info(text, link.pid)
        for each in aside_dirs(self._state_dir):
            on_older(each)

    async def _start(self) -> None:
        """Start a keeper; returns when it listens, or another does."""
        # `poll` reaps keepers that have ended. They are few, and only one call of this runs at a
        # time (`Connection` finds one keeper at a time).
        self._processes = [process for process in self._processes if process.poll() is None]
        ours, theirs = os.pipe()
        try:
            loop = asyncio.get_running_loop()
            execution = loop.run_in_executor(None, self._execute, theirs)
            process = await asyncio.shield(execution)  # its thread goes on, and needs `theirs`
            # The keeper writes one line, and closes its end of the pipe; so it does when it ends.
            # If this is cancelled, as the keeper is slow to start, the keeper goes on, writes to a
            # closed pipe, and is found by the next attempt.
            told = await _line(ours)
        finally:
            os.close(ours)
        if told == "ready":
            logger.info("process %d is the keeper of the kernels", process.pid)
        elif told == "taken":
            # Another server of this directory has started a keeper at the same time, which has the
            # lock. That keeper will soon listen, or end.
            await asyncio.sleep(TAKEN_SECONDS)
        else:
            log = keeper_dir(self._state_dir) / "log"
            raise KeeperUnavailable(f"The keeper of kernels does not start: {told or f'see {log}'}")

    def _execute(self, output: int) -> subprocess.Popen[bytes]:
        try:
            process = execute_keeper(self._state_dir, output)
            self._processes.append(process)
            return process
        finally:
            os.close(output)

    async def close(self, *, is_empty: bool) -> None:
        """As `Place.close`. A keeper that this process has started, and that ends, is reaped."""
        for process in self._processes:
            if is_empty:  # with nothing to keep it ends by itself
                with contextlib.suppress(subprocess.TimeoutExpired):
                    await asyncio.to_thread(process.wait, CLOSE_SECONDS)
            if process.poll() is None:
                process.returncode = 0  # the keeper outlives this process: Popen must not warn


class AsidePlace:
    """The place of a keeper that was set aside, as one of the version before."""

    patience: float = START_SECONDS
    """As `Place.patience`."""

    def __init__(self, state_dir: Path, directory: Path) -> None:
        self._state_dir = state_dir
        self.directory = directory

    async def find(self, owner: LinkOwner, on_drained: Drained) -> KeeperLink:
        """As `Place.find`. Raises `KeeperGone` if there is no keeper, or none any more."""
        try:
            directory = await asyncio.to_thread(self._open)
        except FileNotFoundError:
            raise KeeperGone from None
        try:
            link = await KeeperLink.open(directory, self.directory, owner)
        finally:
            os.close(directory)
        if link is not None and link.protocol in SPOKEN:
            return link
        if link is not None:
            await _drain(link, on_drained)
        # No process listens; the lock tells whether the keeper has ended. If the socket alone was
        # believed, there could be two keepers for the same kernels.
        if await self.has_ended():
            raise KeeperGone
        # The keeper does not listen, and has not ended: it may still write logs or end kernels.
        raise KeeperUnavailable("The keeper of the version before is about to end")

    def _open(self) -> int:
        check_private(self._state_dir)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(self.directory, flags)

    def _is_free(self) -> bool:
        """Whether no process has the lock that a keeper has in its directory while it lives."""
        try:
            lock = os.open(self.directory / "lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return True
        # The lock is held for a moment only. Another server that tries at the same moment finds it
        # taken, and tries again.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        return True

    def notes(self) -> list[Note]:
        """The processes that the keeper had, if it was killed, as in its notes."""
        try:
            directory = self._open()
        except OSError:
            return []
        try:
            rows = Notes(directory).read()
        finally:
            os.close(directory)
        notes = []
        for kernel_id, pid, started, output in rows:
            # The keeper was killed just before or just after a launch: if a process writes to the
            # kernel's output, it was launched.
            if pid == LAUNCHING:
                pid, started = leader_that_writes(pipe_of(Path(output))) or (LAUNCHING, "")
            if pid != LAUNCHING:
                notes.append((kernel_id, pid, started, output))
        return notes

    def remove(self) -> None:
        """Remove the directory of a keeper that has ended."""
        shutil.rmtree(self.directory, ignore_errors=True)

    async def has_ended(self) -> bool:
        """Whether the keeper ends within `CLOSE_SECONDS`, or has ended already."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                while not self._is_free():  # noqa: ASYNC110 - another process's lock has no event
                    await asyncio.sleep(PAUSE_SECONDS)
        return self._is_free()

    async def close(self, *, is_empty: bool) -> None:
        """As `Place.close`: does nothing, as the keeper is no child of this process."""


async def _drain(link: KeeperLink, on_drained: Drained) -> None:
    text = "the keeper is of another version (%d, not %d), and is replaced"
    logger.warning(text, link.protocol, PROTOCOL)
    on_drained(await link.drain())


async def _line(descriptor: int) -> str:
    """The one line that a new keeper writes; empty if it ended without."""
    loop = asyncio.get_running_loop()
    written = asyncio.Event()
    loop.add_reader(descriptor, written.set)
    try:
        await written.wait()
    finally:
        loop.remove_reader(descriptor)
    return os.read(descriptor, 4096).decode(errors="replace").strip()
