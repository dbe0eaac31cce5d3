"""Whether this server could start a kernel now: what a load balancer or an orchestrator asks.

It is asked every few seconds, by anybody, so the answer is kept for a moment, and tells nothing but
yes or no. Why it is no is told to the log, when it changes.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Final

from ..managers.kernels.multikernel import MultiKernelManager

try:
    import resource
except ImportError:  # Windows: there is no such limit
    resource = None  # type: ignore[assignment]

__all__ = ["MIN_FREE_BYTES", "MIN_FREE_DESCRIPTORS", "Readiness"]

logger = logging.getLogger(__name__)

FRESH_SECONDS: Final = 1.0
"""How long an answer is given again before anything is looked at anew."""

MIN_FREE_BYTES: Final = 16 * 2**20
"""On the disk of the state directory: for connection files, output and logs of a kernel."""

MIN_FREE_DESCRIPTORS: Final = 32
"""A kernel takes about ten; the rest is for the requests that start and use it."""

_OPEN_DESCRIPTORS: Final = Path("/proc/self/fd")


class Readiness:
    """Of one server."""

    def __init__(self, kernels: MultiKernelManager) -> None:
        self._kernels = kernels
        self._problem: str | None = None
        self._looked = float("-inf")
        self._looking = asyncio.Lock()

    async def check(self) -> bool:
        """Whether a kernel could be started, as of at most `FRESH_SECONDS` ago."""
        if self._kernels.stopping:
            return False
        async with self._looking:
            if time.monotonic() >= self._looked + FRESH_SECONDS:
                try:
                    problem = await asyncio.to_thread(self._look)
                except OSError as error:
                    problem = str(error)
                self._note(problem)
                self._looked = time.monotonic()
        return self._problem is None

    def _note(self, problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            logger.warning("not ready: %s", problem)
        elif problem is None and self._problem is not None:
            logger.warning("ready again")
        self._problem = problem

    def _look(self) -> str | None:
        """What would keep a kernel from starting, if anything."""
        if not self._kernels.specs.exist():
            return "there is no kernelspec"
        if _free_bytes(self._kernels.settings.state_dir) < MIN_FREE_BYTES:
            return f"the state directory cannot take {MIN_FREE_BYTES} bytes more"
        if _free_descriptors() < MIN_FREE_DESCRIPTORS:
            return f"fewer than {MIN_FREE_DESCRIPTORS} file descriptors are free"
        return None


def _free_bytes(directory: Path) -> float:
    """What may still be written there; nothing if it is gone or cannot be written to."""
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
