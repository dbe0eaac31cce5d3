"""The bounds on all logs of a keeper: their bytes together, and how many files are open."""

from __future__ import annotations

import time
from typing import Protocol

from .open_files import OpenFiles

__all__ = ["Bounded", "LogRoom"]


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
        self.files = OpenFiles()

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
