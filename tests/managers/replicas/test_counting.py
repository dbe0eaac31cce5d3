"""What owners use at all replicas, as one of them counts it with the others.

These are the tests of `app.managers.limits.queues`, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from app.managers.kernels.kernel import Kernel
from app.managers.kernels.shares import KernelShares
from app.managers.kernels.table import KernelTable
from app.managers.limits.errors import ExecutionsLimit, WebSocketsLimit
from app.managers.limits.limits import LimitPolicy
from app.managers.limits.shares import Shares
from app.managers.owners.ownership import Ownership
from app.managers.replicas.membership import beat, declare_dead, leave
from tests.managers.kernels.test_shares import Known
from tests.managers.replicas.asking import Replica
from tests.support.identities import principal

STARTS = "starts_per_minute"
MOST = 7
LIMITED = {"websockets": MOST, "queued_executions": MOST}
ANNA, BEN, FREE = principal("anna"), principal("ben"), principal("free")


class Server:
    """What owners do at a replica. The owner `FREE` has no limit."""

    def __init__(self, replica: Replica) -> None:
        self.replica = replica
        self.counting = replica.counting
        self.table = KernelTable()
        names = {"free": {"websockets": None, "queued_executions": None}}
        self.shares = Shares(LimitPolicy(LIMITED, by_name=names))
        self.shares.counting = self.counting
        self.kernels = KernelShares(self.table, 0, self.shares)
        self.counting.watch(self.kernels)
        for owner in ("anna", "free"):
            self.adopt(owner)

    def adopt(self, owner: str, waiting: int = 0) -> Known:
        kernel = Known(f"{len(self.table)}", Ownership(owner))
        kernel.executions.waiting = waiting
        self.table[kernel.id] = cast(Kernel, kernel)
        return kernel

    def kernel(self, owner: str = "anna") -> Known:
        return cast(Known, self.kernels.of(owner)[0])

    async def open(self, who: Any = ANNA) -> bool:
        """Whether a WebSocket was opened."""
        try:
            await self.shares.open_websocket(who)
        except WebSocketsLimit:
            return False
        return True

    async def execute(self, owner: str = "anna") -> bool:
        """Whether an execution was taken, which waits then."""
        asking = self.kernels.queue_place(Ownership(owner))
        if asking is None:
            self.kernels.check_queue(Ownership(owner))
            self.kernel(owner).executions.waiting += 1
            return True
        async with asking as place:
            try:
                place.check()
            except ExecutionsLimit:
                return False
            self.kernel(owner).executions.waiting += 1
            return True

    def begin(self, owner: str = "anna") -> None:
        """Let the kernel begin with an execution."""
        self.kernel(owner).executions.waiting -= 1
        self.kernels.queue_changed(Ownership(owner))

    async def settled(self) -> None:
        while (writer := self.counting._writer) is not None:
            await asyncio.wait({writer})

    async def beat(self) -> None:
        self.counting.beat()
        await self.settled()

    def stored(self, owner: str = "anna") -> tuple[int, int] | None:
        """What the registry has of this replica."""
        statement = (
            "SELECT websockets, queued_executions FROM kernelkeep.share "
            "WHERE owner = %s AND replica = %s"
        )
        values = owner, self.replica.replica.id
        found = self.replica.database.run(
            lambda one: one.execute(statement.encode(), values).fetchone()
        )
        return None if found is None else (found[0], found[1])


@pytest.fixture
async def servers(replicas: list[Replica]) -> AsyncIterator[list[Server]]:
    made = [Server(one) for one in replicas]
    yield made
    for one in made:
        await one.counting.close()


@pytest.mark.parametrize("what", ["open", "execute"])
async def test_the_last_places_are_taken_once_however_many_ask(
    servers: list[Server], what: str
) -> None:
    first, second, _ = servers
    asked = [getattr((first, second)[number % 2], what)() for number in range(100)]
    assert (await asyncio.gather(*asked)).count(True) == MOST
    for one in (first, second):
        await one.settled()
    here = [one.kernels.counts_of("anna") for one in (first, second)]
    # As it is, and nothing of what was only asked for.
    assert [one.stored() or (0, 0) for one in (first, second)] == here
    assert sum(map(sum, here)) == MOST


@pytest.mark.parametrize("what", ["open", "execute"])
async def test_there_are_never_more_than_the_limit_while_places_come_and_go(
    servers: list[Server], what: str
) -> None:
    taken = most = 0

    async def work(server: Server) -> None:
        nonlocal taken, most
        for _ in range(8):
            if not await getattr(server, what)():
                await asyncio.sleep(0.01)
                continue
            taken += 1
            most = max(most, taken)
            await asyncio.sleep(0.005)
            taken -= 1
            if what == "open":
                server.shares.close_websocket(ANNA)
            else:
                server.begin()

    await asyncio.gather(*(work(servers[number % 3]) for number in range(30)))
    assert 0 < most <= MOST
    for one in servers:
        await one.settled()
        assert one.stored() is None


async def test_a_place_that_is_given_back_is_another_replica_s(servers: list[Server]) -> None:
    first, second, third = servers
    for one in (first, second):
        for _ in range(3):
            assert await one.open()
            assert await one.execute()
    assert await second.open()
    assert await second.execute()
    assert not await third.open()
    assert not await third.execute()
    first.shares.close_websocket(ANNA)
    first.begin()
    await first.settled()
    assert await third.open()
    assert await third.execute()
    assert not await first.open()
    assert not await first.execute()
    assert await third.open(BEN)


async def test_a_refusal_tells_how_many_there_are_at_all_of_them(servers: list[Server]) -> None:
    first, second, _ = servers
    for _ in range(MOST):
        await first.open()
        await first.execute()
    with pytest.raises(WebSocketsLimit) as error:
        await second.shares.open_websocket(ANNA)
    expected = {"limit": "websockets", "value": MOST, "usage": MOST}
    assert error.value.details == expected
    asking = second.kernels.queue_place(Ownership("anna"))
    assert asking is not None
    async with asking as place:
        with pytest.raises(ExecutionsLimit) as refused:
            place.check()
    assert refused.value.details == {**expected, "limit": "queued_executions"}
    assert second.kernels.counts_of("anna") == (0, 0)


async def test_an_owner_without_a_limit_costs_the_registry_nothing(servers: list[Server]) -> None:
    (first, *_) = servers
    for _ in range(2 * MOST):
        assert await first.open(FREE)
        assert await first.execute("free")
        first.begin("free")
        first.shares.close_websocket(FREE)
    await first.beat()
    assert first.replica.asked == 0


async def test_an_execution_that_is_not_taken_gives_its_place_back(servers: list[Server]) -> None:
    first, second, _ = servers
    for _ in range(MOST):
        asking = first.kernels.queue_place(Ownership("anna"))
        assert asking is not None
        async with asking as place:
            place.check()  # and then the kernel turns out to be dead
    await first.settled()
    assert first.stored() is None
    for _ in range(MOST):
        assert await second.execute()


async def test_a_request_that_is_cancelled_gives_its_place_back(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, _ = servers
    asked, go_on = asyncio.Event(), asyncio.Event()
    ask = first.counting._ask

    async def slow(work: Any, /) -> Any:
        found = await ask(work)
        asked.set()
        await go_on.wait()
        return found

    monkeypatch.setattr(first.counting, "_ask", slow)
    opening = asyncio.create_task(first.open())
    await asked.wait()
    assert first.stored() == (1, 0)
    queueing = asyncio.create_task(first.execute())
    await asyncio.sleep(0)
    for one in (opening, queueing):
        one.cancel()
    await asyncio.wait({opening, queueing})
    go_on.set()
    await first.settled()
    assert first.kernels.counts_of("anna") == (0, 0)
    assert first.stored() is None
    assert (await asyncio.gather(*(second.open() for _ in range(MOST)))).count(True) == MOST


async def test_what_changes_while_a_write_is_under_way_is_one_write(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, *_) = servers
    for _ in range(MOST):
        await first.open()
    await first.settled()
    ask, go_on = first.counting._ask, asyncio.Event()

    async def slow(work: Any, /) -> Any:
        await go_on.wait()
        return await ask(work)

    monkeypatch.setattr(first.counting, "_ask", slow)
    before = first.replica.asked
    first.shares.close_websocket(ANNA)
    await asyncio.sleep(0)  # the write begins
    for _ in range(MOST - 1):
        first.shares.close_websocket(ANNA)
        await asyncio.sleep(0)
    go_on.set()
    await first.settled()
    assert first.stored() is None
    assert first.replica.asked == before + 2


async def test_a_replica_that_is_killed_gives_its_places_back(servers: list[Server]) -> None:
    first, second, third = servers
    for _ in range(MOST):
        assert await first.open()
        assert await first.execute()
    first.replica.database.run(lambda one: beat(one, first.replica.replica.id, -1.0))
    assert not await second.open()
    third.replica.database.run(lambda one: declare_dead(one, third.replica.replica.id))
    for _ in range(MOST):
        assert await second.open()
        assert await second.execute()
    assert not await second.open()


async def test_a_replica_that_joins_again_has_its_places_again(servers: list[Server]) -> None:
    first, second, _ = servers
    for _ in range(4):
        assert await first.open()
    second.replica.database.run(lambda one: leave(one, first.replica.replica.id))
    assert first.stored() is None
    # Until it has joined again, it still gets no more than there is room for.
    for _ in range(2):
        assert await second.open()
    assert await first.open()
    assert not await first.open()
    await first.beat()
    assert first.stored() is None
    first.replica.join()
    await first.beat()
    assert first.stored() == (5, 0)
    assert not await second.open()


async def test_while_the_registry_is_away_each_replica_s_own_count_decides(
    servers: list[Server],
) -> None:
    first, second, _ = servers
    first.replica.is_away = True
    opened = await asyncio.gather(*(first.open() for _ in range(20)))
    assert opened.count(True) == MOST
    assert (await asyncio.gather(*(first.execute() for _ in range(20)))).count(True) == MOST
    asked = first.replica.asked
    for _ in range(3):
        first.shares.close_websocket(ANNA)
        first.begin()
    await first.settled()
    assert await first.open()
    assert first.replica.asked == asked  # nobody has waited for it again
    await first.beat()
    assert first.replica.asked == asked + 1
    first.replica.is_away = False
    assert await first.open()
    await first.beat()
    assert first.stored() == (6, 4)
    assert await second.open()
    assert not await first.open()
    assert (await asyncio.gather(*(second.execute() for _ in range(20)))).count(True) == 3


async def test_an_answer_that_is_lost_heals(servers: list[Server]) -> None:
    first, second, _ = servers
    first.replica.loses_answers = True
    assert await first.open()
    assert first.stored() == (1, 0)
    first.shares.close_websocket(ANNA)
    await first.settled()
    first.replica.loses_answers = False
    await first.beat()
    assert first.stored() is None
    assert (await asyncio.gather(*(second.open() for _ in range(9)))).count(True) == MOST


async def test_executions_of_a_kernel_that_is_taken_over_count_for_its_next_replica(
    servers: list[Server],
) -> None:
    first, second, third = servers
    for _ in range(5):
        assert await first.execute()
    del first.table[first.kernel().id]
    second.adopt("anna", 5)
    second.adopt("free", 5)
    for one in (first, second):
        await one.beat()
    assert first.stored() is None
    assert second.stored() == (0, 5)
    assert second.stored("free") is None
    assert (await asyncio.gather(*(third.execute() for _ in range(9)))).count(True) == 2


async def test_what_somebody_has_done_to_the_registry_heals(servers: list[Server]) -> None:
    first, *_ = servers
    assert await first.open()
    for statement in (
        "UPDATE kernelkeep.share SET websockets = 5",
        "DELETE FROM kernelkeep.share",
        "INSERT INTO kernelkeep.share VALUES ('ben', 'id-first', 1, 1)",
    ):
        first.replica.database.run(lambda one: one.execute(statement.encode()))  # noqa: B023
        await first.beat()
        assert first.stored() == (1, 0)
        assert first.stored("ben") is None


async def test_a_failure_that_nobody_has_foreseen_lets_nobody_wait(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (first, *_) = servers

    async def fails(_: Any, /) -> Any:
        raise RuntimeError("unforeseen")

    with monkeypatch.context() as patch:
        patch.setattr(first.counting, "_ask", fails)
        assert await first.open()
        await first.settled()
    assert "cannot be told to the other replicas" in caplog.text
    await first.beat()
    assert first.stored() == (1, 0)


async def test_a_replica_that_ends_lets_nobody_wait(
    servers: list[Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    (first, *_) = servers
    asked, never = asyncio.Event(), asyncio.Event()

    async def hangs(_: Any, /) -> Any:
        asked.set()
        await never.wait()

    monkeypatch.setattr(first.counting, "_ask", hangs)
    opening = asyncio.create_task(first.open())
    await asked.wait()
    await first.counting.close()
    assert await opening
    assert await first.open()
    first.shares.close_websocket(ANNA)
    first.counting.beat()
    assert first.counting._writer is None


async def test_amounts_that_nobody_can_be_asked_for_are_each_replica_s_own_until_the_next_beat(
    servers: list[Server],
) -> None:
    (first, *_) = servers
    counting = first.counting
    first.replica.is_away = True
    assert await counting.take(STARTS, "anna", 1, 1) is None
    asked = first.replica.asked
    first.replica.is_away = False
    assert await counting.take(STARTS, "anna", 1, 1) is None  # and waits for nothing
    assert first.replica.asked == asked
    await first.beat()
    taken = await counting.take(STARTS, "anna", 1, 1)
    assert taken is not None
    assert (taken.wait, taken.used) == (0.0, 1.0)
