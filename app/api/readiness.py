"""Whether this server could start a kernel now, for load balancers and orchestrators.

They ask every few seconds, and anybody may ask. So an answer is reused for a moment, and tells
nothing but yes or no. The server's log tells why the answer is no, when that changes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ..managers.kernels.multikernel import MultiKernelManager
from ..managers.threads import DaemonThreads

try:
    import resource
except ImportError:  # Windows has no limit of file descriptors
    resource = None  # type: ignore[assignment]

__all__ = ["MIN_FREE_BYTES", "MIN_FREE_DESCRIPTORS", "Readiness"]

logger = logging.getLogger(__name__)

FRESH_SECONDS: Final = 1.0
"""How long an answer is reused."""

LOOK_SECONDS: Final = 5.0
"""How long a look may take. While a file system hangs, the server is not ready."""

MIN_FREE_BYTES: Final = 16 * 2**20
"""Bytes on the disk of the state directory that a kernel's connection file, output and log need."""

MIN_FREE_DESCRIPTORS: Final = 32
"""File descriptors that must be free. A kernel takes about ten; the requests to it take others."""

_OPEN_DESCRIPTORS: Final = Path("/proc/self/fd")


class Readiness:
    """Answers whether one server is ready, and logs changes.

    ``more`` returns a further reason why the server is not ready, or None.
    """

    def __init__(
        self, kernels: MultiKernelManager, more: Callable[[], str | None] = lambda: None
    ) -> None:
        self._kernels = kernels
        self._more = more
        self._problem: str | None = None
        self._looked = float("-inf")
        self._looking = asyncio.Lock()
        self._look: asyncio.Future[str | None] | None = None  # one that takes longer goes on

    async def check(self) -> bool:
        """Whether a kernel could be started, as of at most `FRESH_SECONDS` ago."""
        if self._kernels.stopping:
            return False
        # Requests that come while one looks wait for the lock, and then find a fresh answer.
        async with self._looking:
            if time.monotonic() >= self._looked + FRESH_SECONDS:
                problem = await self._found()
                self._note(problem or self._kernels.keepers.problem() or None)
                self._looked = time.monotonic()
        return self._problem is None

    async def _found(self) -> str | None:
        """The problem that a look has found, or that the look takes longer than `LOOK_SECONDS`."""
        # A thread that hangs cannot be ended. As long as it hangs, later probes wait for the same
        # look, so that they take no further threads. The thread is used for nothing else, and the
        # process can end without it.
        try:
            look = self._look = self._look or self._begun()
        except RuntimeError as error:  # there is no room for a thread, and so none for a kernel
            return str(error)
        await asyncio.wait({look}, timeout=LOOK_SECONDS)
        if not look.done():
            return f"a look at the file system takes longer than {LOOK_SECONDS:g} s"
        self._look = None
        try:
            return look.result()
        except OSError as error:
            return str(error)

    def _begun(self) -> asyncio.Future[str | None]:
        thread = DaemonThreads(1, "readiness")
        look = thread.submit(self._problem_now)
        thread.shutdown()
        return asyncio.wrap_future(look)

    def _note(self, problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            logger.warning("not ready: %s", problem)
        elif problem is None and self._problem is not None:
            logger.warning("ready again")
        self._problem = problem

    def _problem_now(self) -> str | None:
        """What would keep a kernel from starting, or None. Raises `OSError`, and blocks."""
        if not self._kernels.specs.exist():
            return "there is no kernelspec"
        if _free_bytes(self._kernels.settings.state_dir) < MIN_FREE_BYTES:
            return f"the state directory cannot take {MIN_FREE_BYTES} bytes more"
        if _free_descriptors() < MIN_FREE_DESCRIPTORS:
            return f"fewer than {MIN_FREE_DESCRIPTORS} file descriptors are free"
        return self._more()


def _free_bytes(directory: Path) -> float:
    """Bytes that may still be written in a directory; 0 if it is gone or not writable."""
    if not os.access(directory, os.W_OK | os.X_OK):
        return 0
    if not hasattr(os, "statvfs"):  # Windows
        return float("inf")
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def _free_descriptors() -> float:
    if not _OPEN_DESCRIPTORS.is_dir() or resource is None:
        return float("inf")
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return float("inf")
    return limit - len(os.listdir(_OPEN_DESCRIPTORS))
