"""What owners use at all replicas, as one of them counts it with the others."""

from __future__ import annotations

import logging
from functools import partial

from ..handover.store import StoreAway
from ..limits.counting import Taken
from .meters import take
from .reservations import Asks

__all__ = ["SharedCounting"]

logger = logging.getLogger(__name__)


class SharedCounting:
    """The `Counting` of one replica.

    When the registry could not be asked, each replica's own count decides until the next `beat`:
    no request waits for the registry again meanwhile.
    """

    def __init__(self, ask: Asks) -> None:
        self._ask = ask
        self._is_away = False

    async def take(
        self, limit: str, owner: str, amount: float, capacity: float, *, is_used: bool = False
    ) -> Taken | None:
        """As `Counting.take`."""
        if self._is_away:
            return None
        work = partial(
            take, limit=limit, owner=owner, amount=amount, capacity=capacity, is_used=is_used
        )
        try:
            taken: Taken = await self._ask(work)
        except StoreAway as error:
            logger.debug("what owners use is counted by this replica alone: %s", error)
            self._is_away = True
            return None
        return taken

    def beat(self) -> None:
        """Ask the registry from now on, also if it was away: call this at each renewal."""
        self._is_away = False
