"""How what owners use is counted, where several servers count it together."""

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
    """What became of an amount that was to be used."""

    wait: float
    """The seconds until there is room for the amount; 0 if it is used now."""
    used: float
    """How much counts as used, at all servers."""


class Counts(NamedTuple):
    """How many an owner has of what has a number at each moment, by the names of the limits."""

    websockets: int = 0
    queued_executions: int = 0


NOTHING: Final = Counts()


class Here(Protocol):
    """What owners have at one server."""

    def counts_of(self, owner: str) -> Counts:
        """What an owner has here; what it is asking for counts."""

    def counted(self) -> Iterable[str]:
        """The owners who have something here that has a limit, so that others have to know."""


class Counting(Protocol):
    """The count that several servers have of what owners use."""

    @property
    def is_shared(self) -> bool:
        """Whether there may be other servers."""

    def watch(self, here: Here) -> None:
        """Look there for what owners have at this server."""

    async def take(
        self, limit: str, owner: str, amount: float, capacity: float, *, is_used: bool = False
    ) -> Taken | None:
        """Use an amount of one of `SPANS`, if there is room for it; None if nobody can be asked.

        There need be no room for an amount that ``is_used`` already. ``capacity`` is above 0.
        """

    async def admit(self, limit: str, owner: str, most: int) -> int | None:
        """Count one more of `Counts`, if there are fewer than ``most`` at all servers; else how
        many there are.

        `Here` has it already when this is called, and, if it is refused or the call is cancelled,
        has it no more before anything else is awaited.
        """

    def changed(self, owner: str) -> None:
        """An owner has less here, or more, than it had. Call this for owners with a limit."""


class CountingAlone:
    """A server that is the only one: its own count decides."""

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
