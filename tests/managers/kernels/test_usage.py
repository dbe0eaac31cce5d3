"""Samples of what kernels use: how often they are taken, and what is made of them."""

from __future__ import annotations

import asyncio
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from app.keeper.limits import NO_LIMITS, ProcessLimits
from app.managers.errors import KeeperUnavailable
from app.managers.kernels import usage as usage_module
from app.managers.kernels.usage import LimitModel, Series, UsageSampler
from app.managers.processes.keeper.kept import ProcessUsage
from tests.support.processes import eventually


def used(at: float, cpu: float | None = 0.0, pid: int = 7, **more: Any) -> ProcessUsage:
    return ProcessUsage(pid=pid, at=at, cpu_seconds=cpu, **more)


class Sampled:
    """A kernel whose samples are given."""

    def __init__(self, limits: ProcessLimits = NO_LIMITS) -> None:
        self.id = "k"
        self.limits = limits
        end = SimpleNamespace(offset=1000, cursor=11)
        log, tracker = SimpleNamespace(end=end), SimpleNamespace(begun=3)
        self.traffic = cast(Any, SimpleNamespace(log=log, tracker=tracker))
        self.taken = 0
        self.answer: ProcessUsage | Exception | None = used(1.0, 0.5, memory=4096)
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def usage(self) -> ProcessUsage | None:
        self.taken += 1
        await self.may_answer.wait()
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


# The series


def test_the_share_of_the_processors_takes_two_samples() -> None:
    series = Series()
    series.add(used(10.0, 1.0), 100.0)
    assert series.cpu is None
    series.add(used(12.0, 2.0), 102.0)
    assert series.cpu == 0.5
    series.add(used(12.1, 2.05), 102.1)  # too soon to tell anything new
    assert series.cpu == 0.5
    series.add(used(14.0, 6.0), 104.0)
    assert series.cpu == 2.0


def test_time_that_has_gone_with_a_process_is_not_counted_backwards() -> None:
    series = Series()
    series.add(used(10.0, 5.0), 100.0)
    series.add(used(12.0, 2.0), 102.0)
    assert series.cpu == 0.0


def test_another_process_begins_anew() -> None:
    series = Series()
    series.add(used(10.0, 5.0), 100.0)
    series.add(used(12.0, 9.0, pid=8), 102.0)
    assert series.cpu is None
    series.add(None, 103.0)
    series.add(used(14.0, 9.0, pid=8), 104.0)
    assert series.cpu is None


def test_what_is_not_known_is_not_made_up() -> None:
    series = Series()
    series.add(used(10.0, None), 100.0)
    series.add(used(12.0, None), 102.0)
    assert series.cpu is None


def test_the_history_is_bounded_in_number_and_time() -> None:
    series = Series()
    for number in range(300):
        series.add(used(number * 1.0, memory=number), float(number))
    assert [point.memory for point in series.points] == [*range(180, 300)]
    series.add(used(750.0, memory=1), 800.0)
    assert series.points[0].memory == 200


# The sampler


@pytest.fixture
async def sampler() -> Any:
    sampler = UsageSampler()
    yield sampler
    await sampler.close()


async def test_what_is_told(sampler: UsageSampler) -> None:
    kernel = Sampled(ProcessLimits(memory=2**20, open_files=50, processes=9))
    by = {"memory": "cgroup", "open_files": "setrlimit"}
    kernel.answer = used(1.0, 0.1234567, memory=4096, memory_kind="pss", enforced=by)
    told = await sampler.usage(kernel)
    assert (told.pid, told.cpu_seconds, told.cpu, told.memory) == (7, 0.123, None, 4096)
    assert (told.bytes_said, told.messages, told.executions) == (1000, 10, 3)
    assert told.limits == {
        "memory": LimitModel(2**20, "cgroup"),
        "open_files": LimitModel(50, "setrlimit"),
        "processes": LimitModel(9, "none"),
    }
    assert told.history is None
    told = await sampler.usage(kernel, history=True)
    assert told.history is not None
    assert [point.memory for point in told.history] == [4096]


async def test_what_kernels_use_together_is_the_sum_of_what_is_known(
    sampler: UsageSampler,
) -> None:
    assert sampler.used_together("ab") == (None, None, None)
    first, second = Sampled(), Sampled()
    first.id, second.id = "ab"
    first.answer = used(1.0, 0.5, memory=4096, threads=3)
    second.answer = used(1.0, 0.5, memory=1000)
    hers = await sampler.latest(first, 1.0)
    assert sampler.used_together("abc") == (4096, None, 3)
    his = await sampler.latest(second, 1.0)
    assert sampler.used_together("abc") == (5096, None, 3)
    assert sampler.used_together("b") == (1000, None, None)
    for series in (hers, his):
        series.add(used(2.0, 0.75, memory=10, threads=2), time.time())
    assert sampler.used_together("abc") == (20, 0.5, 4)
    hers.at -= usage_module.LATELY_SECONDS
    his.add(None, time.time())  # its process has ended
    assert sampler.used_together("abc") == (None, None, None)
    assert first.taken == second.taken == 1


async def test_many_who_ask_get_one_sample(sampler: UsageSampler) -> None:
    kernel = Sampled()
    kernel.may_answer.clear()
    asked = [asyncio.ensure_future(sampler.usage(kernel)) for _ in range(50)]
    await eventually(lambda: kernel.taken == 1)
    asked[0].cancel()  # the others still get theirs
    kernel.may_answer.set()
    done = await asyncio.gather(*asked, return_exceptions=True)
    assert [type(one).__name__ for one in done[:2]] == ["CancelledError", "KernelUsage"]
    assert kernel.taken == 1
    await sampler.usage(kernel)  # a moment later
    assert kernel.taken == 1


async def test_a_first_sample_that_takes_long_is_not_lost_by_a_look_at_others(
    sampler: UsageSampler,
) -> None:
    kernel = Sampled()
    kernel.may_answer.clear()
    asked = [asyncio.ensure_future(sampler.usage(kernel))]
    await eventually(lambda: kernel.taken == 1)
    await sampler.refresh([])
    asked.append(asyncio.ensure_future(sampler.usage(kernel)))
    await asyncio.sleep(0)
    kernel.may_answer.set()
    assert [told.memory for told in await asyncio.gather(*asked)] == [4096, 4096]
    series = sampler.last("k")
    assert series is not None
    assert series.latest is not None


async def test_kernels_that_do_not_answer_hold_up_no_others(
    sampler: UsageSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_module, "REFRESH_SECONDS", 0.05)
    silent, answering = [Sampled() for _ in range(3)], Sampled()
    for number, kernel in enumerate(silent):
        kernel.id = f"silent {number}"
        kernel.may_answer.clear()
    await sampler.refresh([*silent, answering])
    assert answering.taken == 1
    other = Sampled()
    other.id = "other"
    for _ in range(2):  # with room for three at each look
        await sampler.refresh_oldest([*silent, answering, other], 3)
    assert other.taken == 1
    for kernel in silent:
        kernel.answer = KeeperUnavailable("gone")
        kernel.may_answer.set()
    await eventually(lambda: not sampler._sampling)
    last = Sampled()
    last.id = "last"
    await sampler.refresh_oldest([*silent, last], 1)
    assert last.taken == 1


async def test_a_sample_from_the_future_is_taken_again(
    sampler: UsageSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernel = Sampled()
    await sampler.usage(kernel)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)  # the clock was set back
    await sampler.usage(kernel)
    assert kernel.taken == 2
    monkeypatch.setattr(time, "time", lambda: now - 7200)
    await sampler.refresh_oldest([kernel], 1)
    assert kernel.taken == 3


async def test_a_kernel_whose_sample_fails_in_any_way_holds_up_no_look_at_many(
    sampler: UsageSampler, caplog: pytest.LogCaptureFixture
) -> None:
    failing, other = Sampled(), Sampled()
    failing.answer, other.id = KeyError("k"), "other"
    await sampler.refresh([failing, other])
    assert other.taken == 1
    assert "kernel k could not be sampled" in caplog.text


async def test_a_kernel_whose_sample_fails_in_any_way_does_not_end_those_of_others(
    sampler: UsageSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_module, "PERIOD_SECONDS", 0.01)
    kernel = Sampled()
    await sampler.usage(kernel)
    kernel.answer = KeyError("k")
    await eventually(lambda: kernel.taken >= 3)


async def test_a_kernel_without_a_process_uses_nothing(sampler: UsageSampler) -> None:
    kernel = Sampled()
    kernel.answer = None
    told = await sampler.usage(kernel)
    assert (told.pid, told.cpu_seconds, told.memory, told.limits) == (None, None, None, {})
    assert told.bytes_said == 1000


async def test_a_keeper_that_does_not_answer_is_an_error(sampler: UsageSampler) -> None:
    kernel = Sampled()
    kernel.answer = KeeperUnavailable("gone")
    with pytest.raises(KeeperUnavailable):
        await sampler.usage(kernel)
    kernel.answer = used(1.0)
    assert (await sampler.usage(kernel)).pid == 7


async def test_samples_are_taken_while_somebody_asks(
    sampler: UsageSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_module, "PERIOD_SECONDS", 0.01)
    monkeypatch.setattr(usage_module, "WANTED_SECONDS", 0.5)
    kernel = Sampled()
    await sampler.usage(kernel)
    await eventually(lambda: kernel.taken >= 3)
    kernel.answer = KeeperUnavailable("for a moment")
    taken = kernel.taken
    await eventually(lambda: kernel.taken >= taken + 3)
    kernel.answer = used(1.0)
    await eventually(lambda: sampler._periodic is None)  # nobody has asked for long
    taken = kernel.taken
    await asyncio.sleep(0.05)
    assert kernel.taken == taken
    await sampler.usage(kernel, history=True)
    assert sampler._periodic is not None


async def test_what_is_old_is_forgotten(
    sampler: UsageSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_module, "PERIOD_SECONDS", 0.01)
    monkeypatch.setattr(usage_module, "WANTED_SECONDS", 0.05)
    monkeypatch.setattr(usage_module, "HISTORY_SECONDS", 0.0)
    await sampler.usage(Sampled())
    await eventually(lambda: sampler._periodic is None)
    assert sampler._series == {}


async def test_it_can_be_closed_at_any_time() -> None:
    sampler = UsageSampler()
    kernel = Sampled()
    kernel.may_answer.clear()
    asked = asyncio.ensure_future(sampler.usage(kernel))
    await eventually(lambda: kernel.taken == 1)
    await sampler.close()
    with pytest.raises(asyncio.CancelledError):
        await asked


async def test_many_are_sampled_in_turn(sampler: UsageSampler) -> None:
    kernels = [Sampled() for _ in range(5)]
    for number, kernel in enumerate(kernels):
        kernel.id = f"k{number}"
    await sampler.refresh_oldest(kernels, 2)
    assert [kernel.taken for kernel in kernels] == [1, 1, 0, 0, 0]
    kernels[2].answer = KeeperUnavailable("the keeper is away")
    await sampler.refresh_oldest(kernels, 3)
    assert [kernel.taken for kernel in kernels] == [1, 1, 1, 1, 1]
    # Those that have a new sample have to wait; the one that has none is tried again.
    await sampler.refresh_oldest(kernels, 3)
    assert [kernel.taken for kernel in kernels] == [1, 1, 2, 1, 1]
