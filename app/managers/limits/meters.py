"""Meters: how much of something was used lately, for limits on an amount in a span of time."""

from __future__ import annotations

from typing import Final

__all__ = ["Meter"]

ROUNDING: Final = 1e-6
"""By how much a sum of fractions may be too small, through rounding."""


class Meter:
    """A leaky bucket: what is used fills it, and a full one is empty again after ``seconds``.

    So ``capacity`` can be used at once, and as much again in each ``seconds`` after that. Times are
    in seconds of one clock. ``used`` is how much counted as used ``at`` a time.
    """

    __slots__ = ("_at", "_used")

    def __init__(self, used: float = 0.0, at: float = 0.0) -> None:
        self._used = used
        self._at = at

    def used(self, capacity: float, seconds: float, now: float) -> float:
        """How much counts as used."""
        # A time that goes back empties nothing, and fills nothing either.
        if now > self._at:
            self._used = max(0.0, self._used - (now - self._at) * capacity / seconds)
            self._at = now
        return self._used

    def take(self, amount: float, capacity: float, seconds: float, now: float) -> float:
        """Use an amount, if there is room for it; else returns the seconds until there is.

        An amount above the capacity never has room. Returns 0 if it was used.
        """
        above = self.used(capacity, seconds, now) + amount - capacity
        if above > ROUNDING:
            return above * seconds / capacity if capacity else seconds
        self._used += amount
        return 0.0

    def learn(self, used: float, capacity: float, seconds: float, now: float) -> None:
        """Count at least ``used``, as other servers have counted so much."""
        self._used = max(used, self.used(capacity, seconds, now))

    def add(self, amount: float, capacity: float, seconds: float, now: float) -> None:
        """Count an amount that has been used already, even if there is no room for it."""
        self.used(capacity, seconds, now)
        self._used += amount
