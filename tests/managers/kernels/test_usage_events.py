"""Events of what kernels use: told at a slow rate, to whoever listens, of what does something."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.managers.errors import KeeperUnavailable
from app.managers.kernels import usage_events
from app.managers.kernels.usage import UsageSampler
from app.managers.kernels.usage_events import UsageEvents
from tests.managers.kernels.test_usage import Sampled
from tests.support.processes import eventually


class Told(Sampled):
    """A kernel that notes what is told of it."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[float | None, int | None]] = []
        self.state = cast(Any, SimpleNamespace(at_work=False))
        used = SimpleNamespace(used=lambda cpu, memory: self.told.append((cpu, memory)))
        self.reports = cast(Any, used)

    def says(self) -> None:
        self.traffic.log.end.cursor += 1


class Bench:
    """One kernel, and events that somebody is subscribed to or not."""

    def __init__(self) -> None:
        self.kernel = Told()
        self.events = cast(Any, SimpleNamespace(has_subscribers=True))
        self.sampler = UsageSampler()


@pytest.fixture
async def bench(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    monkeypatch.setattr(usage_events, "EVENT_SECONDS", 0.01)
    bench = Bench()
    telling = UsageEvents([bench.kernel], bench.sampler, bench.events)
    yield bench
    telling.close()
    await bench.sampler.close()


async def turns(bench: Bench) -> None:
    """Some turns are over in which a kernel could have been told of."""
    await asyncio.sleep(0.05)


async def test_a_kernel_is_told_of_when_it_has_done_something(bench: Bench) -> None:
    await eventually(lambda: bench.kernel.told == [(0.5, 4096)])
    await turns(bench)
    assert len(bench.kernel.told) == 1  # it is idle
    bench.kernel.says()
    await eventually(lambda: len(bench.kernel.told) == 2)
    bench.kernel.state.at_work = True  # and says nothing
    await eventually(lambda: len(bench.kernel.told) >= 4)


async def test_nothing_is_sampled_for_nobody(bench: Bench) -> None:
    bench.events.has_subscribers = False
    await turns(bench)
    taken = bench.kernel.taken
    bench.kernel.says()
    await turns(bench)
    assert bench.kernel.taken == taken


@pytest.mark.parametrize("error", [KeeperUnavailable("gone"), KeyError("a bug")])
async def test_one_that_cannot_be_sampled_is_told_of_later(bench: Bench, error: Exception) -> None:
    bench.kernel.answer = error
    bench.kernel.state.at_work = True
    await turns(bench)
    told = len(bench.kernel.told)
    bench.kernel.answer = None
    await turns(bench)
    assert len(bench.kernel.told) == told
    bench.kernel.answer = Told().answer
    await eventually(lambda: len(bench.kernel.told) > told)
