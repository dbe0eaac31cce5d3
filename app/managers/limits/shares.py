"""What each owner uses now of its limits, and the refusal of more.

Kernels, waiting executions and bytes of logs have no counters here: they are counted when a number
is needed (`app.managers.kernels.shares`), so no count can be wrong. Everything here runs in the
event loop's thread. Where several servers count together (`Counting`), the shared count is asked
first. Between a check here and the counting of the use nothing is awaited: no two requests get the
last room.
"""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Final

import msgspec

from ..errors import KernelkeepError
from ..owners.ownership import Ownership
from ..owners.principal import Principal
from ..telemetry.counters import Counters
from .counting import DAY, MINUTE, SPANS, Counting, CountingAlone
from .errors import (
    BeyondLimit,
    ContentsLimit,
    KernelsLimit,
    LimitReached,
    RequestsLimit,
    StartsLimit,
    WebSocketsLimit,
)
from .limits import LimitPolicy, Limits
from .meters import Meter

__all__ = ["CallersShare", "Recent", "Shares"]

MAX_OWNERS: Final = 10_000
"""For how many owners the recent use is remembered. The owner that was not seen for longest is
forgotten, unless it has open WebSockets."""


class Recent(msgspec.Struct):
    """What an owner has used lately, rounded up, and has open; absent where there is no limit."""

    starts_per_minute: int | None = None
    contents_bytes_per_day: int | None = None
    requests_per_second: int | None = None
    websockets: int = 0


class _Use:
    __slots__ = ("contents", "groups", "requests", "starts", "websockets")

    def __init__(self) -> None:
        self.starts = Meter()
        self.contents = Meter()
        self.requests = Meter()
        self.websockets = 0
        self.groups: frozenset[str] = frozenset()

    def meter(self, kind: type[LimitReached]) -> Meter:
        """The meter of a limit that several servers count together."""
        return self.starts if kind is StartsLimit else self.contents


class Shares:
    """The shares of all owners; ``clock`` is monotonic, in seconds."""

    def __init__(
        self,
        policy: LimitPolicy | None = None,
        counters: Counters | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.policy = LimitPolicy() if policy is None else policy
        self._refusals = (Counters() if counters is None else counters).limit_refusals
        self._clock = clock
        self.counting: Counting = CountingAlone()
        """The counting together with other servers."""
        self._uses: OrderedDict[str, _Use] = OrderedDict()  # the longest unseen first

    def __len__(self) -> int:
        return len(self._uses)

    def __iter__(self) -> Iterator[str]:
        """The names of the owners whose use is remembered."""
        return iter(tuple(self._uses))

    def limits(self, ownership: Ownership) -> Limits:
        """The limits of an owner."""
        return self.policy.limits(ownership.owner, ownership.groups)

    def groups_of(self, owner: str) -> frozenset[str]:
        """The groups of an owner, as its latest request has shown them."""
        use = self._uses.get(owner)
        return frozenset() if use is None else use.groups

    def recent(self, owner: str, limits: Limits) -> Recent:
        """What an owner with these limits has used lately, and has open."""
        use, now = self._uses.get(owner, _NOTHING), self._clock()
        return Recent(
            _used(use.starts, limits.starts_per_minute, MINUTE, now),
            _used(use.contents, limits.contents_bytes_per_day, DAY, now),
            _used(use.requests, limits.requests_per_second, 1.0, now),
            use.websockets,
        )

    # Requests

    def take_request(self, principal: Principal) -> None:
        """Count a request. Raises `RequestsLimit`."""
        named = self.policy.named
        if not named:
            return
        use = self._use(principal.owner)
        # For `groups_of`: an administrator may look at an owner who makes no request just then.
        use.groups = principal.groups
        if "requests_per_second" in named:
            rate = self.policy.limits(principal.owner, principal.groups).requests_per_second
            # A rate below one a second allows one request, and the next only after its whole time.
            capacity, seconds = (rate, 1.0) if rate is None or rate >= 1 else (1.0, 1 / rate)
            if capacity is not None:
                self._take(RequestsLimit, use.requests, 1, capacity, seconds, shown=rate)

    async def open_websocket(self, principal: Principal) -> None:
        """Count a WebSocket until `close_websocket`. Raises `WebSocketsLimit`, `BeyondLimit`."""
        limit = self.policy.limits(principal.owner, principal.groups).websockets
        use = self._use(principal.owner)
        self.check(WebSocketsLimit, limit, use.websockets)
        # Counted before other servers are asked: of two that are opened at once, only one can be
        # the last that there is room for.
        use.websockets += 1
        if limit is None:
            return
        try:
            await self.admit_together(WebSocketsLimit, principal.owner, limit)
        except BaseException:
            use.websockets -= 1
            raise

    def close_websocket(self, principal: Principal) -> None:
        """Count a WebSocket no more."""
        # The owner is in the table: `_use` forgets none that has a WebSocket open.
        self._uses[principal.owner].websockets -= 1
        if self.counting.is_shared:
            limits = self.policy.limits(principal.owner, principal.groups)
            if limits.websockets is not None:
                self.counting.changed(principal.owner)

    def websockets_of(self, owner: str) -> int:
        """How many WebSockets an owner has open here, those that are being opened included."""
        return self._uses.get(owner, _NOTHING).websockets

    # Kernels and files

    async def take_start(self, ownership: Ownership) -> None:
        """Count a start of a kernel. Raises `StartsLimit` or `BeyondLimit`."""
        limit = self.limits(ownership).starts_per_minute
        if limit is not None:
            await self._take_together(StartsLimit, ownership.owner, 1, limit)

    def check_kernels(self, ownership: Ownership, used: Callable[[], int]) -> None:
        """Raise `KernelsLimit` if an owner that has ``used()`` kernels may have no other."""
        limit = self.limits(ownership).kernels
        if limit is not None:
            self.check(KernelsLimit, limit, used())

    async def take_contents(self, principal: Principal, size: int) -> None:
        """Count bytes that are about to be written. Raises `ContentsLimit` or `BeyondLimit`."""
        limit = self.policy.limits(principal.owner, principal.groups).contents_bytes_per_day
        if limit is not None:
            await self._take_together(ContentsLimit, principal.owner, size, limit)

    async def add_contents(self, principal: Principal, size: int) -> None:
        """Count bytes of a copy, known only afterwards: later writes have less room."""
        limit = self.policy.limits(principal.owner, principal.groups).contents_bytes_per_day
        if limit:
            owner, name = principal.owner, ContentsLimit.limit
            taken = await self.counting.take(name, owner, size, limit, is_used=True)
            meter, now = self._use(owner).contents, self._clock()
            if taken is None:
                meter.add(size, limit, DAY, now)
            else:
                meter.learn(taken.used, limit, DAY, now)

    def check(self, kind: type[LimitReached], limit: int | None, used: int) -> None:
        """Raise an error of this kind, and count it, if ``used`` leaves no room for one more.

        With a limit of 0, which never leaves room, the error is `BeyondLimit`.
        """
        if limit is None or used < limit:
            return
        raise self._refused(
            kind.limit, kind(limit, used) if limit else BeyondLimit(kind.limit, limit, 1)
        )

    async def admit_together(self, kind: type[LimitReached], owner: str, limit: int) -> None:
        """Count one more at all servers; this server counts it already (`Counting.admit`).

        Raises an error of this kind. Then, and if this is cancelled, the caller has to end the
        count here before anything else is awaited.
        """
        used = await self.counting.admit(kind.limit, owner, limit)
        if used is not None:
            raise self._refused(kind.limit, kind(limit, used))

    async def _take_together(
        self, kind: type[LimitReached], owner: str, amount: float, capacity: float
    ) -> None:
        """Count an amount at all servers, and here. Raises an error of this kind, `BeyondLimit`."""
        seconds, taken = SPANS[kind.limit], None
        if amount <= capacity and capacity:
            taken = await self.counting.take(kind.limit, owner, amount, capacity)
        meter = self._use(owner).meter(kind)
        if taken is None:
            self._take(kind, meter, amount, capacity, seconds)
            return
        # This server's own meter learns of it: it decides while the shared count is out of reach.
        # It refuses nothing now that the shared count has granted.
        meter.learn(taken.used, capacity, seconds, self._clock())
        if taken.wait:
            raise self._refused(kind.limit, kind(capacity, _whole(taken.used), taken.wait))

    def _take(
        self,
        kind: type[LimitReached],
        meter: Meter,
        amount: float,
        capacity: float,
        seconds: float,
        *,
        shown: float | None = None,
    ) -> None:
        now, value = self._clock(), capacity if shown is None else shown
        # Waiting never makes room for such an amount, so the error does not ask to try again.
        if amount > capacity:
            raise self._refused(kind.limit, BeyondLimit(kind.limit, value, amount))
        wait = meter.take(amount, capacity, seconds, now)
        if wait:
            used = _whole(meter.used(capacity, seconds, now))
            raise self._refused(kind.limit, kind(value, used, wait))

    def _refused(self, limit: str, error: KernelkeepError) -> KernelkeepError:
        self._refusals[limit] += 1
        return error

    def _use(self, owner: str) -> _Use:
        use = self._uses.get(owner)
        if use is not None:
            self._uses.move_to_end(owner)
            return use
        if len(self._uses) >= MAX_OWNERS:
            # An owner that was forgotten begins again with empty meters. If all have WebSockets
            # open, the table grows on, bounded by the number of connections.
            unseen = next((name for name, one in self._uses.items() if not one.websockets), None)
            if unseen is not None:
                del self._uses[unseen]
        use = self._uses[owner] = _Use()
        return use


class CallersShare:
    """The share of the owner who makes a request."""

    __slots__ = ("_principal", "_shares")

    def __init__(self, shares: Shares, principal: Principal) -> None:
        self._shares = shares
        self._principal = principal

    async def take_contents(self, size: int) -> None:
        """Count bytes that are about to be written (`Shares.take_contents`)."""
        await self._shares.take_contents(self._principal, size)

    async def add_contents(self, size: int) -> None:
        """Count bytes that were written (`Shares.add_contents`)."""
        await self._shares.add_contents(self._principal, size)


# Of an owner of whom nothing is known. Only read: a meter that was never filled stays empty,
# whatever its time.
_NOTHING: Final = _Use()


def _used(meter: Meter, limit: float | None, seconds: float, now: float) -> int | None:
    return None if limit is None else _whole(meter.used(limit, seconds, now))


def _whole(used: float) -> int:
    """A number rounded up, without the error of adding fractions: three thirds are 1, not 2."""
    return math.ceil(used - 1e-6)
