"""The kernels that have ended lately, and why they have ended.

Nothing here does I/O. The next server knows none of these kernels.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from ..owners.ownership import Ownership

__all__ = [
    "BY_CLIENT",
    "BY_REQUEST",
    "KEPT_SECONDS",
    "MOST",
    "MOST_OF_ONE",
    "Departure",
    "Departures",
]

KEPT_SECONDS: Final = 86_400.0
"""How long the end of a kernel is remembered."""

MOST_OF_ONE: Final = 50
MOST: Final = 1000
"""How many ends are remembered, of one owner and of all: no owner crowds out all others."""

BY_REQUEST: Final = "Stopped by a request"
BY_CLIENT: Final = "A client asked it to shut down over its channels"


class Departure(NamedTuple):
    """A kernel that has ended.

    ``number`` is one more than that of the departure before, and ``at`` in seconds since the epoch.
    ``model`` is the kernel's model as JSON, with the ``reason`` of the end; ``host`` is where it
    was, None for this machine.
    """

    number: int
    kernel_id: str
    at: float
    model: bytes
    host: str | None
    ownership: Ownership


class Departures:
    """The latest departures, the oldest first."""

    def __init__(self) -> None:
        self.last = 0
        """The number of the latest departure; 0 before the first."""
        self._by_id: dict[str, Departure] = {}

    def note(
        self, kernel_id: str, model: bytes, host: str | None, ownership: Ownership, now: float
    ) -> None:
        """Remember that a kernel has ended; forget the oldest of its owner, or of all, for it."""
        self._by_id.pop(kernel_id, None)  # an id can be started again
        owners = [
            one.kernel_id for one in self._by_id.values() if one.ownership.owner == ownership.owner
        ]
        for old in owners[: max(0, len(owners) + 1 - MOST_OF_ONE)]:
            del self._by_id[old]
        if len(self._by_id) >= MOST:
            del self._by_id[next(iter(self._by_id))]
        self.last += 1
        self._by_id[kernel_id] = Departure(self.last, kernel_id, now, model, host, ownership)

    def since(self, number: int, now: float) -> list[Departure]:
        """The departures after a number, as far as they are remembered."""
        if number >= self.last:  # most looks of most streams
            return []
        return [
            one
            for one in self._by_id.values()
            if one.number > number and now - one.at < KEPT_SECONDS
        ]
