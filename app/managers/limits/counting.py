"""How what owners use is counted, where several servers count it together."""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

__all__ = ["DAY", "MINUTE", "SPANS", "Counting", "CountingAlone", "Taken"]

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


class Counting(Protocol):
    """The count that several servers have of what owners use."""

    async def take(
        self, limit: str, owner: str, amount: float, capacity: float, *, is_used: bool = False
    ) -> Taken | None:
        """Use an amount of one of `SPANS`, if there is room for it; None if nobody can be asked.

        There need be no room for an amount that ``is_used`` already. ``capacity`` is above 0.
        """


class CountingAlone:
    """A server that is the only one: its own count decides."""

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
