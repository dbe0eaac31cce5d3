"""The processes of the kernels that one keeper has, as the server sees them."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import signal
from collections.abc import Iterator
from typing import Final

import msgspec

from ....keeper.limits import NO_LIMITS, ProcessLimits
from ....keeper.processes import UNKNOWN_EXIT, Process, open_process
from ....keeper.protocol import Fields
from ....keeper.usage import Usage

__all__ = ["Greeted", "Kept", "ProcessUsage", "Processes", "WatchedProcess"]

logger = logging.getLogger(__name__)

EXIT_SECONDS: Final = 3.0
"""How long after the end of a process the keeper may take to tell the exit code."""

MAX_EARLY: Final = 256
"""How many ends of processes that are not noted yet are remembered; the oldest go first."""

TAIL_BYTES: Final = 8192
TAIL_LINES: Final = 12


class Kept(msgspec.Struct, frozen=True):
    """A keeper's record of one kernel's process.

    ``start_time`` is opaque. ``exit_code`` is None while the process runs; afterwards it is the
    exit code, minus the number of the signal that killed it, or `UNKNOWN_EXIT`. ``output`` is the
    file with the process's output. ``enforced`` tells for each limit of the process how it is
    enforced: ``cgroup``, ``setrlimit`` or ``none``; it is empty from a keeper of the time before
    there were limits. ``unlimited`` is why limits that are set do not hold. ``oom`` tells that the
    process has ended for want of memory.
    """

    kernel_id: str
    pid: int
    start_time: str
    exit_code: int | None
    output: str
    enforced: dict[str, str] = msgspec.field(default_factory=dict)
    unlimited: str = ""
    oom: bool = False


class Greeted(msgspec.Struct, frozen=True):
    """A keeper's answer to its greeting.

    ``kept`` has its kernels' processes, ``heard`` the ids of the kernels that it hears, and ``can``
    the fields of requests that it heeds.
    """

    kept: list[Kept]
    heard: list[str]
    can: list[str] = []


class ProcessUsage(Usage, kw_only=True):
    """What the processes of a kernel use, at ``at`` by the keeper's monotonic clock.

    ``pid`` is the kernel's process. ``enforced`` is as in `Kept`.
    """

    pid: int
    at: float
    enforced: dict[str, str] = msgspec.field(default_factory=dict)


class WatchedProcess:
    """A kernel's process. The keeper tells how it has ended, and `Process` sees that it has ended.

    If the process is not ``here`` but on another host, only the keeper tells that it has ended.
    """

    def __init__(self, kept: Kept, *, here: bool = True) -> None:
        self.kernel_id = kept.kernel_id
        self.pid = kept.pid
        self.start_time = kept.start_time
        self.output = kept.output
        self.enforced = kept.enforced
        self.limits = NO_LIMITS
        self.oom = kept.oom
        self._process: Process | None = None
        self._patience: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        if kept.exit_code is not None:
            self.end(kept.exit_code)
        elif here:
            self._watch()

    def end(self, code: int) -> None:
        """Note that the process has ended, with this exit code."""
        self.stop_watching()
        if not self.exited.done():
            self.exited.set_result(code)

    def signal(self, number: int) -> None:
        """Signal the process's group. Raises `ProcessLookupError` if the process has ended."""
        if self._process is None:
            raise ProcessLookupError(errno.ESRCH, "the process has ended")
        self._process.signal_group(number)

    def stop_watching(self) -> None:
        """Let go of the process; ``exited`` stays as it is."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        if self._process is not None:
            self._process.close()
            self._process = None

    def tail(self) -> str:
        """The end of the file with the output of the process, for people."""
        try:
            with open(self.output, "rb") as file:
                file.seek(max(os.fstat(file.fileno()).st_size - TAIL_BYTES, 0))
                text = file.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.strip().splitlines()[-TAIL_LINES:])

    def _watch(self) -> None:
        try:
            self._process = open_process(self.pid, self.start_time)
        except OSError as error:  # no descriptors are left
            logger.error("process %d is watched by the keeper alone: %s", self.pid, error)
            return
        if self._process is None:
            self._on_end()
        else:
            self._process.watch(self._on_end)

    def _on_end(self) -> None:
        """Wait for the exit code: the keeper has seen the end, too, and may be about to tell it."""
        # There is one timer at most: `Process` calls this once, and `_watch` calls it only if there
        # is no `Process`.
        self._patience = self._loop.call_later(EXIT_SECONDS, self._end_unknown)

    def _end_unknown(self) -> None:
        # The keeper kills the rest of the group, if it lives. It may be dead, or hang.
        with contextlib.suppress(OSError):
            self.signal(signal.SIGKILL)
        self.end(UNKNOWN_EXIT)


class Processes:
    """The processes of one keeper's kernels, by the kernels' ids; ``here``, or on another host."""

    def __init__(self, *, here: bool = True) -> None:
        self._here = here
        self._watched: dict[str, WatchedProcess] = {}
        self._early: dict[str, tuple[int, int, bool]] = {}  # pids, exit codes, whether by memory

    def __len__(self) -> int:
        return len(self._watched)

    def __iter__(self) -> Iterator[WatchedProcess]:
        """The watched processes; kernels may come and go during the iteration."""
        return iter([*self._watched.values()])

    def get(self, kernel_id: str) -> WatchedProcess | None:
        """A kernel's process, if there is one."""
        return self._watched.get(kernel_id)

    @property
    def running(self) -> int:
        """How many of the processes have not ended."""
        return sum(not watched.exited.done() for watched in self._watched.values())

    def note(self, kept: Kept, *, anew: bool = False, limits: ProcessLimits | None = None) -> None:
        """Watch a process that the keeper has; ``anew`` if it was just launched.

        ``limits`` are the limits that the keeper was told for the process; None if not known.
        """
        watched = self._watched.get(kept.kernel_id)
        if watched is None or anew or watched.pid != kept.pid:
            # Tasks that wait for the process before must not wait for ever: as the keeper has
            # another process of the kernel, that one has ended.
            if watched is not None:
                watched.end(UNKNOWN_EXIT)
            watched = self._watched[kept.kernel_id] = WatchedProcess(kept, here=self._here)
        watched.enforced = kept.enforced
        if limits is not None:
            watched.limits = limits
        # The end of this process may have been told before its launch was noted. An entry for
        # another process is dropped: a kernel has one process at a time.
        pid, code, oom = self._early.pop(kept.kernel_id, (kept.pid, kept.exit_code, kept.oom))
        if pid == kept.pid and code is not None:
            watched.oom = oom
            watched.end(code)

    def on_exited(self, event: Fields) -> None:
        """Take the keeper's event that a process has ended."""
        watched = self._watched.get(str(event.get("kernel_id")))
        if watched is not None and watched.pid == event["pid"]:
            watched.oom = bool(event.get("oom"))
            watched.end(event["code"])
        else:  # the task that launched the process has not yet had its turn to read the answer
            self._early[event["kernel_id"]] = (
                *(event["pid"], event["code"]),
                bool(event.get("oom")),
            )
            if len(self._early) > MAX_EARLY:
                del self._early[next(iter(self._early))]

    def forget(self, kernel_id: str, pid: int | None) -> int | None:
        """Kill a kernel's process and watch it no more; with ``pid`` only if it is that process.

        Returns the id of the process that was killed, or else ``pid``.
        """
        self._early.pop(kernel_id, None)
        watched = self._watched.get(kernel_id)
        if watched is not None and pid in (None, watched.pid):
            del self._watched[kernel_id]
            pid = watched.pid
            # Killed from here at once, and by the keeper when it is told: it may be away now.
            with contextlib.suppress(OSError):
                watched.signal(signal.SIGKILL)
            watched.stop_watching()
            # The exit code will not be told any more. A task that waits for it alone is cancelled;
            # `KernelProcess._undo` sets the future that others wait for.
            watched.exited.cancel()
        return pid

    def let_go(self, kernel_id: str) -> None:
        """Watch a kernel's process no more, which is another server's from now on."""
        self._early.pop(kernel_id, None)
        watched = self._watched.pop(kernel_id, None)
        if watched is not None:
            watched.stop_watching()
            watched.exited.cancel()

    def take_from(self, other: Processes) -> list[WatchedProcess]:
        """Take all processes of another keeper, which is gone; their ``exited`` stay the same.

        Returns the processes that were not here before.
        """
        taken = []
        for kernel_id, watched in other._watched.items():
            if kernel_id in self._watched:  # this keeper has a process of the kernel meanwhile
                watched.end(UNKNOWN_EXIT)
            else:
                self._watched[kernel_id] = watched
                taken.append(watched)
        other._watched.clear()
        return taken

    def close(self) -> None:
        """Watch no process any more."""
        for watched in self._watched.values():
            watched.stop_watching()
            watched.exited.cancel()
