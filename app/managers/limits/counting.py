"""The interface by which several servers count together what owners use."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol

__all__ = [
    "DAY",
    "MINUTE",
    "NOTHING",
    "SPANS",
    "Counting",
    "CountingAlone",
    "Counts",
    "Here",
    "Taken",
]

MINUTE: Final = 60.0
DAY: Final = 86400.0

SPANS: Final = {"starts_per_minute": MINUTE, "contents_bytes_per_day": DAY}
"""The limits on an amount in a span of time that servers count together; the span in seconds."""


class Taken(NamedTuple):
    """The result of `Counting.take`."""

    wait: float
    """The seconds until there is room for the amount; 0 if it is used now."""
    used: float
    """How much of the limit is used, at all servers together."""


class Counts(NamedTuple):
    """An owner's present counts, by the names of the limits."""

    websockets: int = 0
    queued_executions: int = 0


NOTHING: Final = Counts()


class Here(Protocol):
    """The counts of owners at one server."""

    def counts_of(self, owner: str) -> Counts:
        """An owner's counts at this server, those that wait for `Counting.admit` included."""

    def counted(self) -> Iterable[str]:
        """The owners with a limit and a count here, of which other servers have to know."""


class Counting(Protocol):
    """Counts what owners use, together with the other servers if there are any."""

    @property
    def is_shared(self) -> bool:
        """Whether there may be other servers."""

    def watch(self, here: Here) -> None:
        """Read this server's counts from ``here``."""

    async def take(
        self, limit: str, owner: str, amount: float, capacity: float, *, is_used: bool = False
    ) -> Taken | None:
        """Count an amount for one of the limits in `SPANS`, if there is room for it.

        Returns None if there is no shared count, or it is out of reach: then the server's own count
        decides. An amount that ``is_used`` already is counted even without room. ``capacity`` is
        above 0.
        """

    async def admit(self, limit: str, owner: str, most: int) -> int | None:
        """Count one more for a limit in `Counts`, unless the servers have ``most`` together.

        Returns the count if that leaves no room, else None. `Here` counts the new one already when
        this is called. If it is refused, or the call is cancelled, `Here` counts it no longer
        before anything else is awaited.
        """

    def changed(self, owner: str) -> None:
        """Take note that an owner's counts here have changed; only owners with a limit matter."""


class CountingAlone:
    """The counting of a server that is the only one: its own counts decide."""

    is_shared = False

    def watch(self, here: Here) -> None:
        """As `Counting.watch`."""

    async def take(
        self,
        limit: str,  # noqa: ARG002
        owner: str,  # noqa: ARG002
        amount: float,  # noqa: ARG002
        capacity: float,  # noqa: ARG002
        *,
        is_used: bool = False,  # noqa: ARG002
    ) -> Taken | None:
        """As `Counting.take`."""
        return None

    async def admit(self, limit: str, owner: str, most: int) -> int | None:  # noqa: ARG002
        """As `Counting.admit`."""
        return None

    def changed(self, owner: str) -> None:
        """As `Counting.changed`."""
