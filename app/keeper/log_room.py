"""The bounds on all logs of a keeper: their bytes together, and how many files are open."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Final, Protocol

__all__ = ["OPEN_FILES", "Bounded", "LogRoom"]

OPEN_FILES: Final = 256
"""How many logs have their newest file open. Thousands of silent kernels need no descriptors."""


class Bounded(Protocol):
    """A log, as far as its bounds are concerned."""

    @property
    def bytes(self) -> int:
        """How many bytes its segments have."""

    @property
    def droppable(self) -> int:
        """How many bytes can be dropped from its front."""

    def drop_first(self) -> None:
        """Drop the oldest segment."""

    def expire(self, before: float) -> None:
        """Drop the segments that were written last before a time."""

    def let_go(self) -> None:
        """Close its file, which it opens again when it is written to."""


class LogRoom:
    """The bounds on all logs of a keeper.

    ``each`` is in bytes of one log, ``together`` in bytes of all, ``age`` in seconds.
    """

    def __init__(self, each: int, together: int, age: float) -> None:
        self.each = each
        self.together = together
        self.age = age
        self.used = 0
        self._logs: set[Bounded] = set()
        self._open: dict[Bounded, None] = {}  # those with an open file, the longest open first

    def add(self, log: Bounded) -> None:
        """Count a log from now on."""
        self._logs.add(log)
        self.used += log.bytes

    def remove(self, log: Bounded) -> None:
        """Count a log no more."""
        self._logs.discard(log)
        self.used -= log.bytes

    def grow(self, size: int) -> None:
        """Note that a log has grown by ``size`` bytes; the largest logs shrink until all fit."""
        self.used += size
        while self.used > self.together:
            largest = max(self._logs, key=lambda log: log.droppable, default=None)
            if largest is None or not largest.droppable:
                return
            largest.drop_first()

    def expire(self) -> None:
        """Drop messages that have become too old, also of kernels that are silent."""
        for log in tuple(self._logs):
            log.expire(time.time() - self.age)

    def open(self, log: Bounded, path: Path) -> int:
        """Open a log's file for writing; the log whose file is open for longest may lose its own.

        So it does if no descriptors are left, too. Raises `OSError`. `closed` is called in the end.
        """
        flags = os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            descriptor = os.open(path, flags)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not self._open:
                raise
            self._let_go_until(len(self._open) // 2)
            descriptor = os.open(path, flags)
        self._let_go_until(OPEN_FILES - 1)
        self._open[log] = None
        return descriptor

    def closed(self, log: Bounded) -> None:
        """Note that a log has closed its file."""
        self._open.pop(log, None)

    def _let_go_until(self, count: int) -> None:
        while len(self._open) > count:
            oldest = next(iter(self._open))
            del self._open[oldest]
            oldest.let_go()
