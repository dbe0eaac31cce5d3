"""The bounds on all logs of a keeper: their bytes, of each, of all and of each owner."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

from .open_files import OpenFiles

__all__ = ["NO_SHARE", "Bounded", "LogRoom", "share_from"]


NO_SHARE: Final = ("", 0)
"""The share of a log that has none: only the bounds on all logs hold for it."""


def share_from(fields: Mapping[str, Any]) -> tuple[str, int]:
    """The ``share`` of a request: a key and a number of bytes; `NO_SHARE` if it has none.

    Raises `ValueError` if the pair is anything else.
    """
    share = fields.get("share")
    if share is None:
        return NO_SHARE
    key, size = share
    if not (isinstance(key, str) and key and isinstance(size, int) and size > 0):
        raise ValueError("a log's share is a key and a number of bytes")
    return key, size


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


class _Share:
    """The bound on the logs of some kernels together, which one owner has."""

    def __init__(self) -> None:
        self.bytes = 0
        self.used = 0
        self.logs: set[Bounded] = set()


class LogRoom:
    """The bounds on all logs of a keeper.

    ``each`` is in bytes of one log, ``together`` in bytes of all, ``age`` in seconds. Some logs may
    have a share of that, which is less (`share`).
    """

    def __init__(self, each: int, together: int, age: float) -> None:
        self.each = each
        self.together = together
        self.age = age
        self.used = 0
        self._logs: set[Bounded] = set()
        self._shares: dict[str, _Share] = {}
        self._share_of: dict[Bounded, str] = {}
        self.files = OpenFiles()

    def add(self, log: Bounded) -> None:
        """Count a log from now on."""
        self._logs.add(log)
        self.used += log.bytes

    def remove(self, log: Bounded) -> None:
        """Count a log no more."""
        self.share(log, "", 0)
        self._logs.discard(log)
        self.used -= log.bytes

    def share(self, log: Bounded, key: str, size: int) -> None:
        """Have a log share ``size`` bytes with all others of the same ``key``; none with "".

        The size that was given last counts for all. Each log keeps at least its newest file.
        """
        before = self._share_of.pop(log, "")
        # The bytes of a log count for one key at a time: they leave the one before they join the
        # next, and `_fit` drops files only when both sums are right.
        if before:
            left = self._shares[before]
            left.logs.discard(log)
            left.used -= log.bytes
            if not left.logs:
                del self._shares[before]
        if key:
            self._share_of[log] = key
            share = self._shares.setdefault(key, _Share())
            share.logs.add(log)
            share.bytes = size
            share.used += log.bytes
            self._fit(share)

    def bound_of(self, log: Bounded) -> int:
        """How many bytes one log may have."""
        share = self._shares.get(self._share_of.get(log, ""))
        return self.each if share is None else min(self.each, share.bytes)

    def part_of(self, log: Bounded) -> int:
        """How many bytes one file of a log should have: a part of what the log may have.

        Only whole files can be dropped. So where logs share a bound, each has smaller files.
        """
        share = self._shares.get(self._share_of.get(log, ""))
        together = self.each if share is None else share.bytes // len(share.logs)
        return min(self.each, together) // 4

    def grow(self, log: Bounded, size: int) -> None:
        """Note that a log has grown by ``size`` bytes; the largest logs shrink until all fit."""
        self.used += size
        share = self._shares.get(self._share_of.get(log, ""))
        if share is not None:
            share.used += size
        if size < 0:
            # A log that drops a file calls this, mostly from one of the loops below. To drop
            # further files here would call `drop_first` within `drop_first`, once for each file.
            return
        if share is not None:
            self._fit(share)
        while self.used > self.together and _drop_of_largest(self._logs):
            pass

    def _fit(self, share: _Share) -> None:
        while share.used > share.bytes and _drop_of_largest(share.logs):
            pass

    def expire(self) -> None:
        """Drop messages that have become too old, also of kernels that are silent."""
        for log in self._logs:
            log.expire(time.time() - self.age)


def _drop_of_largest(logs: set[Bounded]) -> bool:
    """Drop the oldest segment of the log that can drop most; whether there was one."""
    # The log that can drop most loses its oldest file: so a kernel that floods costs the other
    # kernels no messages.
    largest = max(logs, key=lambda log: log.droppable, default=None)
    if largest is None or not largest.droppable:
        return False
    largest.drop_first()
    return True
