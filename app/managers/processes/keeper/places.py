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
"""How long a keeper may take to start, and one that ends to be gone."""

CLOSE_SECONDS: Final = 2.0
"""How long a keeper that is left with nothing to keep may take to end."""

PAUSE_SECONDS: Final = 0.05
"""Between two looks whether a keeper has ended."""

TAKEN_SECONDS: Final = 0.2
"""When a keeper that another server has started is looked for again."""

Drained = Callable[[Sequence[Any]], None]
"""Is told what a keeper knew of its kernels that has let go of them."""


class KeeperGone(KeeperUnavailable):
    """A keeper that was set aside has ended, or was killed. There will be no other in its place."""

    def __init__(self) -> None:
        super().__init__("The keeper of the version before has ended")


class Place(Protocol):
    """Where one keeper is."""

    patience: float
    """How long a keeper may take to be there, in seconds."""

    async def find(self, owner: LinkOwner, on_drained: Drained) -> KeeperLink:
        """A connection to the keeper that is there, of a version that is spoken.

        One of another version is drained. Raises `KeeperUnavailable`, `OSError`, `TooOpen` and
        `Garbled`.
        """

    async def close(self, *, is_empty: bool) -> None:
        """The server leaves the keeper, which has no kernels if it ``is_empty``."""


class NewestPlace:
    """The place of the keeper of this version, which is started if there is none.

    ``on_older`` is called when a keeper of the version before is there, which is then set aside:
    with the directory of each that was. Without that, it is drained like one of any other version.
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
            # Anew each time: what was there may have been set aside.
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

        A server that is killed before or behind that leaves one or two keepers that the next server
        finds. No keeper can begin in the directory meanwhile: the older one has its lock.
        """
        # It is a link of the newest keeper's client. `AsidePlace` makes one for another client.
        await link.close()
        # Replicas that start at the same time find the same keeper. One is first; what is in its
        # place by now is the directory of a keeper of this version, or nothing.
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
        # Those that have ended are reaped here: keepers that are started are few, and this is
        # awaited by nobody else (`Connection` finds one keeper at a time).
        self._processes = [process for process in self._processes if process.poll() is None]
        ours, theirs = os.pipe()
        try:
            loop = asyncio.get_running_loop()
            execution = loop.run_in_executor(None, self._execute, theirs)
            process = await asyncio.shield(execution)  # it goes on, and needs its descriptor
            # The keeper closes its end when it has told, or ends: so the line ends. If this is
            # cancelled, as the keeper is slow to start, the keeper goes on, tells it to a closed
            # pipe, and is found by the next attempt.
            told = await _line(ours)
        finally:
            os.close(ours)
        if told == "ready":
            logger.info("process %d is the keeper of the kernels", process.pid)
        elif told == "taken":
            # Another server of this directory was faster; the lock has decided between the two
            # keepers. The other one will soon listen, or end.
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
                process.returncode = 0  # it outlives us, and nobody needs a warning of that


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
        # Nobody listens, and the lock tells whether it has ended. To believe the socket alone would
        # have two keepers for the same kernels.
        if await self.has_ended():
            raise KeeperGone
        # It does not listen any more. Until it has ended it may write logs, and end its kernels.
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
        # Held for a moment only. Another server that looks at the same moment finds it taken, and
        # looks again.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(lock)
        return True

    def notes(self) -> list[Note]:
        """Which processes the keeper had, if it was killed; one that it was just launching, too."""
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
            # It was killed between its note and the launch, or behind the launch: who writes to the
            # kernel's output tells which.
            if pid == LAUNCHING:
                pid, started = leader_that_writes(pipe_of(Path(output))) or (LAUNCHING, "")
            if pid != LAUNCHING:
                notes.append((kernel_id, pid, started, output))
        return notes

    def remove(self) -> None:
        """Remove what a keeper has left that is gone."""
        shutil.rmtree(self.directory, ignore_errors=True)

    async def has_ended(self) -> bool:
        """Whether the keeper ends within `CLOSE_SECONDS`: it has nothing to keep, or was killed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                while not self._is_free():  # noqa: ASYNC110 - another process's lock has no event
                    await asyncio.sleep(PAUSE_SECONDS)
        return self._is_free()

    async def close(self, *, is_empty: bool) -> None:
        """As `Place.close`: it is no child of this process."""


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
