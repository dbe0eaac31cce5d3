"""The queue of starts."""

from __future__ import annotations

import asyncio

import pytest

from app.managers.errors import KernelNotRunning, ServerStopping, TooManyStarts
from app.managers.processes.starts import Starts


class Start:
    """One start of a kernel that comes up, or not, when the test says so."""

    def __init__(self, starts: Starts) -> None:
        self._starts = starts
        self.launched = False
        self.came_up: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        with self._starts.admission():
            await self._starts.launch(self._launch, self.came_up)

    async def _launch(self) -> None:
        self.launched = True

    async def fails(self) -> BaseException | None:
        await asyncio.wait({self.task}, timeout=10)
        return self.task.exception()


async def turns() -> None:
    """Let all that can go on do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_so_many_at_a_time_the_rest_in_their_order_and_one_too_many_refused() -> None:
    starts = Starts(2, 2)
    a, b, c, d = (Start(starts) for _ in range(4))
    await turns()
    assert [one.launched for one in (a, b, c, d)] == [True, True, False, False]
    assert (starts.running, starts.waiting) == (2, 2)
    refused = await Start(starts).fails()
    assert isinstance(refused, TooManyStarts)
    assert refused.retry_after
    b.came_up.set_result(False)
    await turns()
    assert (c.launched, d.launched) == (True, False)
    e = Start(starts)
    a.came_up.set_result(True)
    c.came_up.set_result(True)
    await turns()
    assert (d.launched, e.launched) == (True, True)
    assert (starts.running, starts.waiting) == (2, 0)
    d.came_up.set_result(True)
    e.came_up.set_result(True)
    await asyncio.wait_for(starts.quiet(), 10)
    assert starts.running == 0


async def test_one_that_comes_just_as_several_places_are_free_does_not_wait_for_the_next() -> None:
    starts = Starts(2, 5)
    a, b, c = (Start(starts) for _ in range(3))
    await turns()
    for one in (a, b):
        one.came_up.set_result(True)
    d = Start(starts)  # `c` has been woken by its turn, and has not entered yet
    await turns()
    assert (c.launched, d.launched) == (True, True)


async def test_one_that_is_shut_down_or_given_up_before_its_turn_is_in_nobodys_way() -> None:
    starts = Starts(1, 5)
    first, shut_down, given_up, last = (Start(starts) for _ in range(4))
    await turns()
    shut_down.came_up.set_result(False)
    given_up.task.cancel()
    assert isinstance(await shut_down.fails(), KernelNotRunning)
    await asyncio.wait({given_up.task}, timeout=10)
    assert (starts.running, starts.waiting) == (1, 1)
    first.came_up.set_result(True)
    await turns()
    assert last.launched
    assert not shut_down.launched
    assert not given_up.launched


async def test_who_waits_when_the_server_stops_is_told_so() -> None:
    starts = Starts(1, 5)
    first, waiting = Start(starts), Start(starts)
    await turns()
    starts.stop()
    assert isinstance(await waiting.fails(), ServerStopping)
    assert isinstance(await Start(starts).fails(), ServerStopping)
    first.came_up.set_result(True)


async def test_a_launch_that_fails_gives_its_place_to_the_next() -> None:
    starts = Starts(1, 0)

    async def fail() -> None:
        raise OSError("no")

    for _ in range(3):
        with pytest.raises(OSError, match="no"), starts.admission():
            await starts.launch(fail, asyncio.get_running_loop().create_future())
    assert starts.running == 0
