"""The jobs of kernels where other replicas have jobs in the same engine: whose they are, and who
may end them. What jobs of real engines do is in the tests of those.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec

from app.managers.errors import KeeperUnavailable
from app.managers.processes.engines.docker_options import PROVISIONER
from app.managers.processes.engines.engine import Job, JobState, Order, Strangers
from app.managers.processes.engines.engines import Engines
from app.managers.processes.engines.work import kernel_of
from app.managers.processes.hosts.errors import HostUnusable
from app.managers.processes.hosts.joining import Joining
from app.managers.processes.keeper.keepers import Keepers
from tests.support.joined import LOGS
from tests.support.processes import eventually

SPEC = KernelSpec(
    metadata={"kernel_provisioner": {"provisioner_name": PROVISIONER, "config": {"image": "lab:1"}}}
)


class Ledger:
    """An engine whose jobs are entries in a list."""

    name = "the ledger"
    absent_is_ended = True

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.cancelled: list[str] = []
        self.on_cancel: Callable[[], None] = lambda: None

    async def submit(self, order: Order) -> None:
        raise AssertionError("no job is submitted here")

    async def find(self, keeper_id: str) -> list[Job]:
        return [job for job in self.jobs if job.keeper_id == keeper_id]

    async def watch(self) -> AsyncGenerator[Sequence[Job], None]:
        yield self.jobs

    async def cancel(self, job: Job) -> None:
        self.cancelled.append(job.where)
        self.jobs.remove(job)
        self.on_cancel()

    async def explain(self, job: Job) -> KeeperUnavailable:
        return HostUnusable(f"{job.where} has ended")

    async def joined(self, keeper_id: str, generation: int) -> None: ...

    async def close(self) -> None: ...


class Group:
    """The service of several replicas, as one of them sees it."""

    is_alone = False

    def __init__(self) -> None:
        self.others: dict[str, int] = {}
        self.lost: set[str] = set()
        self.is_away = False

    async def name(self) -> str:
        return "0123456789abcdef"

    async def check_own(self, kernel_id: str) -> None:
        if kernel_id in self.lost:
            raise KeeperUnavailable("another replica has the kernel")

    async def generations(self, keeper_ids: Collection[str]) -> Mapping[str, int]:
        if self.is_away:
            raise KeeperUnavailable("the registry is away")
        return {each: self.others[each] for each in keeper_ids if each in self.others}


class Bench:
    """The jobs of one replica."""

    def __init__(self, tmp_path: Path) -> None:
        self.ledger, self.group = Ledger(), Group()
        options = {**LOGS, "orphan_timeout": 3600.0, "output_bytes": 10_000}
        self.keepers = Keepers(tmp_path, **options)
        self.engines = Engines(Joining(tmp_path), self.keepers.remote, self.group)
        self.words: list[str] = []

    def assign(self, kernel_id: str, left: Mapping[str, Any]) -> str:
        """Have a kernel here that another replica has left; the id of its keeper."""
        assert self.engines.assign(kernel_id, SPEC, left, owner="ada", on_words=self.words.append)
        work = self.engines._works[kernel_id]
        self.engines._engines[work.chosen.key] = self.ledger
        self.engines._strangers[work.chosen.key] = Strangers(0)
        return work.keeper_id

    async def see(self) -> None:
        """Look at all jobs, and end those that are strangers."""
        (key,) = self.engines._engines
        await self.engines._see(key, self.ledger, [*self.ledger.jobs])
        await asyncio.gather(*self.engines._tasks)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    await bench.engines.close()
    await bench.keepers.close()


def left(keeper_id: str) -> dict[str, Any]:
    config = SPEC.metadata["kernel_provisioner"]["config"]
    return {"engine": PROVISIONER, "options": config, "job": 3, "keeper_id": keeper_id}


def job(keeper_id: str, generation: int = 3, state: JobState = JobState.RUNNING) -> Job:
    return Job(f"{keeper_id}/{generation}", keeper_id, generation, state)


def test_a_keepers_id_tells_its_kernel() -> None:
    assert kernel_of("0b5b-4c.1234abcd") == "0b5b-4c"


async def test_jobs_of_kernels_of_other_replicas_are_no_strangers(bench: Bench) -> None:
    own = bench.assign("k", left("k.1"))
    bench.group.others = {"other.1": 7}
    ended = JobState.ENDED
    bench.ledger.jobs = [
        *(job(own), job("other.1", 7, ended), job("other.1", 8), job("other.1", 6)),
        *(job("nobodys.1", 3, ended), job("nobodys.2")),
    ]
    await bench.see()
    assert sorted(bench.ledger.cancelled) == ["nobodys.1/3", "nobodys.2/3", "other.1/6"]
    # Where it is not known which are others', none is ended.
    bench.group.is_away = True
    bench.ledger.jobs.append(job("nobodys.3", 3, ended))
    with pytest.raises(KeeperUnavailable, match="the registry is away"):
        await bench.see()
    assert len(bench.ledger.cancelled) == 3


async def test_only_the_owner_of_a_kernel_ends_its_job(bench: Bench) -> None:
    own = bench.assign("k", left("k.1"))
    bench.ledger.jobs = [job(own)]
    bench.group.lost = {"k"}
    with pytest.raises(KeeperUnavailable, match="another replica has the kernel"):
        await bench.engines.end("k")
    assert bench.ledger.jobs
    bench.group.lost = set()
    assert await bench.engines.end("k")
    assert bench.ledger.cancelled == ["k.1/3"]


async def test_no_further_job_is_ended_when_another_has_the_kernel_meanwhile(bench: Bench) -> None:
    own = bench.assign("k", left("k.1"))
    bench.ledger.jobs = [job(own, 2), job(own, 3)]
    bench.ledger.on_cancel = lambda: bench.group.lost.add("k")
    with pytest.raises(KeeperUnavailable, match="another replica has the kernel"):
        await bench.engines.end("k")
    assert bench.ledger.cancelled == ["k.1/2"]


async def test_a_job_that_this_machines_engine_has_never_had_may_run_elsewhere(
    bench: Bench,
) -> None:
    bench.assign("k", left("k.1"))
    await bench.see()
    work = bench.engines._works["k"]
    assert (work.over, work.is_out) == (None, True)
    assert "has lost the job" in bench.words[-1]
    # One that it has had, and has no more, has ended.
    bench.ledger.jobs = [job("k.1")]
    await bench.see()
    assert bench.words[-1] == ""
    bench.ledger.jobs = []
    await bench.see()
    assert work.over is not None
    assert bench.engines.why_ended("k")


async def test_an_engine_that_fails_at_the_end_keeps_none_from_being_closed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    own, closed = bench.assign("k", left("k.1")), asyncio.Event()
    bench.ledger.jobs = [job(own)]
    bench.engines._part_with(bench.engines._works["k"])

    async def fail(_job: Job) -> None:
        raise ValueError("no sense")

    async def close() -> None:
        closed.set()

    monkeypatch.setattr(bench.ledger, "cancel", fail)
    monkeypatch.setattr(bench.ledger, "close", close)
    await bench.engines.close()
    assert closed.is_set()
    assert "a job could not be ended" in caplog.text


async def test_the_job_of_a_kernel_that_is_let_go_is_left_alone(bench: Bench) -> None:
    own = bench.assign("k", left("k.1"))
    bench.ledger.jobs = [job(own)]
    bench.group.others = {own: 3}
    bench.keepers.let_go("k")
    assert not bench.engines.has("k")
    await eventually(lambda: not bench.keepers.remote.all, 10)
    (bench.engines._strangers[next(iter(bench.engines._engines))]) = Strangers(0)
    await bench.see()
    assert not bench.ledger.cancelled
