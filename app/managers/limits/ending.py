"""When a kernel is ended by its owner's limits on time, and when that is announced."""

from __future__ import annotations

from typing import Final, NamedTuple

from .limits import Limits

__all__ = ["Due", "TimePlan", "due", "notices"]

NOTICES: Final = (300.0, 60.0)
"""How many seconds before its end a kernel's clients are told."""

SHORT: Final = 10.0
"""A limit that is too short for `NOTICES` is announced when a tenth of it is left."""


class Due(NamedTuple):
    """The limit that ends a kernel first, and in how many seconds; 0 or less is now.

    ``whole`` is the limit's own value, in seconds.
    """

    left: float
    limit: str
    whole: float


def due(limits: Limits, *, age: float, idle: float | None) -> Due | None:
    """The limit that ends a kernel which is ``age`` seconds old, and idle for ``idle`` seconds.

    ``idle`` is None for a kernel that runs something. Returns None if no limit will end it.
    """
    found = []
    if limits.lifetime is not None:
        found.append(Due(limits.lifetime - age, "lifetime", limits.lifetime))
    if limits.idle_timeout is not None and idle is not None:
        found.append(Due(limits.idle_timeout - idle, "idle_timeout", limits.idle_timeout))
    return min(found, default=None)


def notices(whole: float) -> tuple[float, ...]:
    """How many seconds before the end of a limit it is announced, the earliest first."""
    return tuple(each for each in NOTICES if each <= whole / 2) or (whole / SHORT,)


class TimePlan:
    """The announcements of one kernel's end. Times are in seconds of a monotonic clock.

    No kernel is ended without a notice. A kernel whose time is up at the first look, as after a
    restart of the server, is given the time of the last notice.
    """

    __slots__ = ("_limit", "_not_before", "_told")

    def __init__(self) -> None:
        self._limit = ""
        self._told = 0.0  # the notice that was given last: so many seconds before the end
        self._not_before = 0.0

    def next(self, due: Due | None, now: float) -> tuple[bool, float | None]:
        """Whether the kernel is to be ended now; and the seconds to announce, or None."""
        if due is None:
            self._limit = ""
            return False, None
        planned = notices(due.whole)
        # The end has moved away, as an idle kernel has run something: the next notice is a first
        # one again.
        if due.left > planned[0]:
            self._limit = ""
            return False, None
        notice = min(each for each in planned if due.left <= each)
        # A look may come late, when the times of several notices are over: only the last of them is
        # given. Each limit is announced by itself, so a kernel gets the time of a last notice anew
        # when another limit comes first.
        if due.limit != self._limit or notice < self._told:
            is_first = due.limit != self._limit
            self._limit, self._told = due.limit, notice
            # The end may be overdue, but only the first notice gives time.
            left = max(due.left, min(planned[-1], notice)) if is_first else due.left
            if is_first:
                self._not_before = now + left
            return False, max(left, 0.0)
        # `left` alone does not tell: for a kernel that was found overdue it is always below 0.
        return due.left <= 0 and now >= self._not_before, None
