"""What owners use and what they are refused, by a clock of the test's own.

These are the tests of `app.managers.limits.errors` and `app.managers.limits.counting`, too.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.managers.errors import KernelkeepError
from app.managers.limits import shares as module
from app.managers.limits.counting import CountingAlone, Taken
from app.managers.limits.errors import (
    LIMIT_ERRORS,
    BeyondLimit,
    ContentsLimit,
    KernelsLimit,
    LimitReached,
    RequestsLimit,
    StartsLimit,
    WebSocketsLimit,
)
from app.managers.limits.limits import LimitPolicy, Limits
from app.managers.limits.shares import CallersShare, Shares
from app.managers.owners.ownership import Ownership
from app.managers.telemetry.counters import Counters
from tests.support.identities import principal

ANNA, BEN = principal("anna", groups={"staff"}), principal("ben")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class World:
    """Shares of owners who all have the same limits."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.counters = Counters()
        self.shares = Shares(LimitPolicy(limits), self.counters, self.clock)


def refused(error: pytest.ExceptionInfo[KernelkeepError]) -> tuple[int, str, dict[str, Any]]:
    return error.value.status, error.value.code, {**error.value.details}


def test_each_error_names_its_limit() -> None:
    assert {kind.limit for kind in LIMIT_ERRORS} < {*Limits.__struct_fields__}
    assert len({kind.code for kind in LIMIT_ERRORS}) == len(LIMIT_ERRORS)
    error = KernelsLimit(10, 10)
    assert error.message == "The owner's limit kernels is 10, and 10 are used: shut one down first"
    assert (error.status, error.retry_after) == (429, 10)


def test_requests_a_second() -> None:
    world = World(requests_per_second=2)
    for _ in range(2):
        world.shares.take_request(ANNA)
    with pytest.raises(RequestsLimit) as error:
        world.shares.take_request(ANNA)
    assert refused(error) == (
        *(429, "requests_limit"),
        {"limit": "requests_per_second", "value": 2, "usage": 2},
    )
    assert error.value.retry_after == 1
    world.shares.take_request(BEN)  # another owner has a share of its own
    world.clock.now += 0.5
    world.shares.take_request(ANNA)
    with pytest.raises(RequestsLimit):
        world.shares.take_request(ANNA)
    assert world.counters.limit_refusals == {"requests_per_second": 2}


def test_less_than_one_request_a_second() -> None:
    world = World(requests_per_second=0.1)
    world.shares.take_request(ANNA)
    with pytest.raises(RequestsLimit) as error:
        world.shares.take_request(ANNA)
    assert error.value.retry_after == 10
    assert error.value.details["value"] == 0.1
    world.clock.now += 10
    world.shares.take_request(ANNA)


async def test_starts_a_minute() -> None:
    world = World(starts_per_minute=3)
    for _ in range(3):
        await world.shares.take_start(Ownership("anna"))
    with pytest.raises(StartsLimit) as error:
        await world.shares.take_start(Ownership("anna"))
    assert error.value.retry_after == 20
    await world.shares.take_start(Ownership("ben"))
    world.clock.now += 20
    await world.shares.take_start(Ownership("anna"))


async def test_websockets_and_none_at_all() -> None:
    world = World(websockets=2)
    for _ in range(2):
        await world.shares.open_websocket(ANNA)
    with pytest.raises(WebSocketsLimit):
        await world.shares.open_websocket(ANNA)
    await world.shares.open_websocket(BEN)
    world.shares.close_websocket(ANNA)
    await world.shares.open_websocket(ANNA)
    assert world.shares.recent("anna", Limits()).websockets == 2
    with pytest.raises(BeyondLimit) as error:
        await World(websockets=0).shares.open_websocket(ANNA)
    assert refused(error) == (
        *(403, "beyond_limit"),
        {"limit": "websockets", "value": 0, "usage": 1},
    )
    assert error.value.retry_after is None


async def test_bytes_of_contents() -> None:
    world = World(contents_bytes_per_day=1000)
    share = CallersShare(world.shares, ANNA)
    await share.take_contents(600)
    with pytest.raises(ContentsLimit) as error:
        await share.take_contents(500)
    assert error.value.details == {"limit": "contents_bytes_per_day", "value": 1000, "usage": 600}
    assert error.value.retry_after == 8640
    with pytest.raises(BeyondLimit, match="contents_bytes_per_day is 1000, and this takes 1001"):
        await share.take_contents(1001)
    await share.take_contents(400)
    await share.add_contents(500)  # a copy: known when it is made
    with pytest.raises(ContentsLimit):
        await share.take_contents(0)
    world.clock.now += 86400
    await share.take_contents(500)


class Others(CountingAlone):
    """What other servers answer; None while they cannot be asked."""

    is_shared = True

    def __init__(self) -> None:
        self.used: int | None = None
        self.changes: list[str] = []
        self.answer: Taken | None = None
        self.asked: list[tuple[str, str, float, float, bool]] = []

    async def take(
        self, limit: str, owner: str, amount: float, capacity: float, *, is_used: bool = False
    ) -> Taken | None:
        self.asked.append((limit, owner, amount, capacity, is_used))
        return self.answer

    async def admit(self, limit: str, owner: str, most: int) -> int | None:
        self.asked.append((limit, owner, 1, most, False))
        return self.used

    def changed(self, owner: str) -> None:
        self.changes.append(owner)


async def test_what_several_servers_count_together_is_refused_by_all_and_known_here() -> None:
    world = World(starts_per_minute=2, contents_bytes_per_day=100)
    world.shares.counting = others = Others()
    limits = world.shares.policy.limits("anna")
    others.answer = Taken(7.0, 1.5)
    for _ in range(5):
        with pytest.raises(StartsLimit) as error:
            await world.shares.take_start(Ownership("anna"))
    assert (error.value.retry_after, error.value.details["usage"]) == (7, 2)
    others.answer = Taken(864.0, 96.0)
    with pytest.raises(ContentsLimit) as refusal:
        await world.shares.take_contents(ANNA, 5)
    assert (refusal.value.retry_after, refusal.value.details["usage"]) == (864, 96)
    assert others.asked[-1] == ("contents_bytes_per_day", "anna", 5, 100, False)
    assert world.shares.recent("anna", limits).contents_bytes_per_day == 96
    # What they have granted is not refused: they know by now what has run off.
    others.answer = Taken(0.0, 100.0)
    await world.shares.take_contents(ANNA, 5)
    others.answer = Taken(0.0, 130.0)
    await world.shares.add_contents(ANNA, 30)
    assert others.asked[-1] == ("contents_bytes_per_day", "anna", 30, 100, True)
    assert world.shares.recent("anna", limits).contents_bytes_per_day == 130
    # While they cannot be asked, what is known here counts.
    others.answer = None
    with pytest.raises(ContentsLimit) as refusal:
        await world.shares.take_contents(ANNA, 5)
    assert refusal.value.details["usage"] == 130
    await world.shares.add_contents(ANNA, 30)
    assert world.shares.recent("anna", limits).contents_bytes_per_day == 160
    world.clock.now += 86400 * 1.6
    await world.shares.take_contents(ANNA, 95)
    # It is not forgotten when they are back.
    others.answer = Taken(0.0, 3.0)
    await world.shares.take_contents(ANNA, 3)
    assert world.shares.recent("anna", limits).contents_bytes_per_day == 95


async def test_nobody_is_asked_about_what_can_never_be_or_has_no_limit() -> None:
    world = World(starts_per_minute=0, contents_bytes_per_day=100)
    world.shares.counting = others = Others()
    others.answer = Taken(0.0, 1.0)
    with pytest.raises(BeyondLimit):
        await world.shares.take_start(Ownership("anna"))
    with pytest.raises(BeyondLimit):
        await world.shares.take_contents(ANNA, 101)
    unlimited = World()
    unlimited.shares.counting = others
    await unlimited.shares.open_websocket(ANNA)
    unlimited.shares.close_websocket(ANNA)
    await unlimited.shares.take_start(Ownership("anna"))
    await unlimited.shares.take_contents(ANNA, 101)
    await unlimited.shares.add_contents(ANNA, 101)
    assert others.asked == []
    assert others.changes == []


async def test_websockets_that_others_leave_no_room_for_are_none() -> None:
    world = World(websockets=3)
    world.shares.counting = others = Others()
    await world.shares.open_websocket(ANNA)
    assert others.asked == [("websockets", "anna", 1, 3, False)]
    others.used = 4
    with pytest.raises(WebSocketsLimit) as error:
        await world.shares.open_websocket(ANNA)
    assert error.value.details == {"limit": "websockets", "value": 3, "usage": 4}
    assert world.shares.websockets_of("anna") == 1
    assert world.counters.limit_refusals == {"websockets": 1}
    world.shares.close_websocket(ANNA)
    assert others.changes == ["anna"]
    assert world.shares.websockets_of("anna") == world.shares.websockets_of("ben") == 0


def test_kernels_are_counted_by_whoever_has_them() -> None:
    world, asked = World(kernels=2), []

    def used() -> int:
        asked.append(1)
        return 2

    with pytest.raises(KernelsLimit):
        world.shares.check_kernels(Ownership("anna"), used)
    world.shares.check_kernels(Ownership("anna"), lambda: 1)
    unlimited = World()
    unlimited.shares.check_kernels(Ownership("anna"), used)
    assert asked == [1]  # nobody counts where there is no limit


async def test_without_limits_nothing_is_noted_of_requests() -> None:
    shares = World().shares
    shares.take_request(ANNA)
    await shares.take_start(Ownership("anna"))
    await CallersShare(shares, ANNA).take_contents(10**12)
    await CallersShare(shares, ANNA).add_contents(10**12)
    assert len(shares) == 0


async def test_what_is_used_is_shown_and_the_groups_that_an_owner_has_shown() -> None:
    world = World(requests_per_second=5, starts_per_minute=3, contents_bytes_per_day=100)
    limits = world.shares.policy.limits("anna")
    assert world.shares.groups_of("anna") == frozenset()
    world.shares.take_request(ANNA)
    await world.shares.take_start(Ownership("anna"))
    world.clock.now += 0.1
    recent = world.shares.recent("anna", limits)
    assert (recent.requests_per_second, recent.starts_per_minute) == (1, 1)
    assert recent.contents_bytes_per_day == 0
    assert world.shares.recent("anna", Limits()).starts_per_minute is None
    assert world.shares.groups_of("anna") == {"staff"}
    assert [*world.shares] == ["anna"]


async def test_the_owners_that_are_known_have_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OWNERS", 10)
    shares = World(websockets=3, requests_per_second=1).shares
    await shares.open_websocket(ANNA)
    for number in range(100):
        shares.take_request(principal(f"{number}"))
    assert len(shares) == 10
    assert shares.recent("anna", Limits()).websockets == 1  # who has one open is not forgotten
    shares.close_websocket(ANNA)


def _at_once(work: Coroutine[Any, Any, None]) -> None:
    with pytest.raises(StopIteration):
        work.send(None)


@given(st.lists(st.tuples(st.sampled_from(["open", "close"]), st.sampled_from([ANNA, BEN]))))
def test_no_websocket_is_lost_or_too_many(steps: list[tuple[str, Any]]) -> None:
    shares = World(websockets=3).shares
    opened = {"anna": 0, "ben": 0}
    for step, who in steps:
        if step == "open":
            try:
                _at_once(shares.open_websocket(who))
            except LimitReached:
                assert opened[who.owner] == 3
            else:
                opened[who.owner] += 1
        elif opened[who.owner]:
            shares.close_websocket(who)
            opened[who.owner] -= 1
        assert shares.recent(who.owner, Limits()).websockets == opened[who.owner] <= 3
