"""One replica's part in counting, together with the others, what owners use at all replicas.

A WebSocket or a queued execution is counted in the registry before it is granted (`admit`). Counts
that have become smaller are written later. So are counts that have grown without a call of `admit`,
as by executions that are queued at a kernel which was taken over, and counts that the registry has
lost. One task writes all of them, one statement after the other: no write overtakes another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from ..handover.store import StoreAway
from ..limits.counting import NOTHING, Counts, Here, Taken
from .counts import Admitted, Asked, admit, store
from .database import Connection
from .meters import take
from .reservations import Asks

__all__ = ["SharedCounting"]

logger = logging.getLogger(__name__)


class _Ask:
    """A call of `SharedCounting.admit`; ``decided`` is the count if it was refused, else None."""

    __slots__ = ("asked", "decided", "is_granted")

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.decided: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self.is_granted = False


class SharedCounting:
    """The `Counting` of one replica. Use it inside a running event loop, and `close` it there.

    When the registry could not be asked, this replica's own count decides, until a `beat` reaches
    the registry again: meanwhile no request waits for the registry.
    """

    is_shared = True

    def __init__(self, replica_id: str, ask: Asks) -> None:
        self._replica = replica_id
        self._ask = ask
        self._here: Here | None = None
        self._is_away = False
        self._is_closed = False
        # By owner. The calls that are not over: `Here` counts them all.
        self._asks: dict[str, list[_Ask]] = {}
        # This replica's counts in the registry, by owner; None if they are not known. The counts of
        # an owner that is not in the dict are 0 there.
        self._stored: dict[str, Counts | None] = {}
        self._changed: set[str] = set()
        self._is_beat = False
        self._writer: asyncio.Task[None] | None = None

    def watch(self, here: Here) -> None:
        """As `Counting.watch`."""
        self._here = here

    async def take(
        self, limit: str, owner: str, amount: float, capacity: float, *, is_used: bool = False
    ) -> Taken | None:
        """As `Counting.take`."""
        work = partial(
            take, limit=limit, owner=owner, amount=amount, capacity=capacity, is_used=is_used
        )
        taken: Taken | None = await self._answer(work)
        return taken

    async def admit(self, limit: str, owner: str, most: int) -> int | None:
        """As `Counting.admit`."""
        if self._is_away:
            self._stored[owner] = None  # so the next beat stores this owner's counts
            return None
        ask = _Ask(Asked(limit, most))
        asks = self._asks.setdefault(owner, [])
        asks.append(ask)
        self._write_soon()
        try:
            return await ask.decided
        finally:
            # Nothing is awaited from here until the caller has its own count right: `_own`, which
            # reads `asks` and that count, sees both before the change or both after it. If the call
            # was cancelled, the registry may have counted it: `changed` has that corrected.
            asks.remove(ask)
            if not asks:
                del self._asks[owner]
            self.changed(owner)

    def changed(self, owner: str) -> None:
        """As `Counting.changed`."""
        self._changed.add(owner)
        self._write_soon()

    def beat(self) -> None:
        """Write all counts to the registry soon. Call this at each beat of the lease."""
        self._is_beat = True
        self._write_soon()

    async def close(self) -> None:
        """Write nothing more."""
        self._is_closed = self._is_away = True
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait({self._writer})
        self._decide_alone()

    async def _answer(self, work: Callable[[Connection], Any], *, anyway: bool = False) -> Any:
        """What the registry answers; None if it is away."""
        if self._is_away and not anyway:
            return None
        try:
            return await self._ask(work)
        except StoreAway as error:
            logger.debug("what owners use is counted by this replica alone: %s", error)
            self._is_away = True
            return None

    # Writing

    def _write_soon(self) -> None:
        # There is one writer at most. It awaits nothing between its last look at what is to be done
        # and `self._writer = None`.
        if self._writer is None and not self._is_closed:
            self._writer = asyncio.get_running_loop().create_task(
                self._write(), name="count what owners use"
            )

    async def _write(self) -> None:
        try:
            while self._changed or self._is_beat or self._undecided:
                for owner in self._undecided:
                    await self._decide(owner)
                await self._store()
        except Exception:
            # Whatever was raised: `_decide_alone` grants the requests, so that none waits for ever.
            logger.exception("what owners use cannot be told to the other replicas")
            self._is_away = True
        finally:
            self._writer = None
            self._decide_alone()

    @property
    def _undecided(self) -> list[str]:
        """The owners who wait for an answer, those who have waited for longest first."""
        return [
            owner
            for owner, asks in self._asks.items()
            if not all(ask.decided.done() for ask in asks)
        ]

    async def _decide(self, owner: str) -> None:
        asks = [ask for ask in self._asks.get(owner, ()) if not ask.decided.done()]
        if not asks:  # they were cancelled
            return
        work = partial(
            admit,
            replica_id=self._replica,
            owner=owner,
            own=self._own(owner),
            asked=[ask.asked for ask in asks],
        )
        admitted: Admitted = await self._answer(work) or Admitted([None] * len(asks), None)
        self._note(owner, admitted.stored)
        for ask, used in zip(asks, admitted.found, strict=True):
            if not ask.decided.done():
                ask.is_granted = used is None
                ask.decided.set_result(used)

    def _decide_alone(self) -> None:
        """Grant all requests: this replica has room for them, and no other replica can be asked."""
        for owner, asks in self._asks.items():
            for ask in asks:
                if not ask.decided.done():
                    self._stored[owner] = None
                    ask.is_granted = True
                    ask.decided.set_result(None)

    async def _store(self) -> None:
        """Store the counts that have changed; at a beat, store all counts."""
        owners, self._changed = self._changed, set()
        is_beat, self._is_beat = self._is_beat, False
        if is_beat:
            owners |= {*self._stored, *(self._here.counted() if self._here else ())}
        own = {owner: self._own(owner) for owner in owners}
        if not is_beat:
            own = {
                owner: counts
                for owner, counts in own.items()
                if counts != self._stored.get(owner, NOTHING)
            }
        if not own and not (is_beat and self._is_away):
            return  # owners without a limit cost the registry nothing
        work = partial(store, replica_id=self._replica, own=own, is_all=is_beat)
        is_stored = await self._answer(work, anyway=is_beat)
        if is_beat and is_stored is not None:
            self._is_away = self._is_closed
        for owner, counts in own.items():
            self._note(owner, counts if is_stored else None)

    def _note(self, owner: str, stored: Counts | None) -> None:
        if stored == NOTHING:
            self._stored.pop(owner, None)
        else:
            self._stored[owner] = stored

    def _own(self, owner: str) -> Counts:
        """An owner's counts here, without the requests that are not granted yet."""
        here = NOTHING if self._here is None else self._here.counts_of(owner)
        asks = self._asks.get(owner, ())
        waiting = Counter(ask.asked.limit for ask in asks if not ask.is_granted)
        return Counts(
            here.websockets - waiting["websockets"],
            here.queued_executions - waiting["queued_executions"],
        )
