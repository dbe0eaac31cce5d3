"""The jobs of kernels, by an engine whose jobs are processes of this machine, with real keepers.

What it lists is what a test says: an engine may list a job as running, or as being removed, for a
while after it has ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec

from app.managers.errors import KeeperUnavailable
from app.managers.log.entries import Position
from app.managers.messages.traffic import Traffic
from app.managers.processes.engines import engines as module
from app.managers.processes.engines.docker_options import PROVISIONER
from app.managers.processes.engines.engine import Job, JobState, Order, Strangers
from app.managers.processes.engines.engines import Engines
from app.managers.processes.engines.order import PROGRAM
from app.managers.processes.hosts.errors import HostUnreachable, HostUnusable
from app.managers.processes.hosts.service import OwnService
from app.managers.processes.keeper.keepers import Keepers
from app.managers.state import KernelState
from app.managers.telemetry.counters import Counters
from app.settings import Settings
from tests.keeper.conftest import Client
from tests.support.home import Home
from tests.support.joined import LOGS, WAIT, JoinedService
from tests.support.kernelspecs import FAKE_KERNEL
from tests.support.processes import eventually

OPTIONS = {"image": "lab", "python": sys.executable}
SPEC = KernelSpec(
    metadata={"kernel_provisioner": {"provisioner_name": PROVISIONER, "config": OPTIONS}}
)


class ProcessEngine:
    """An engine whose jobs are processes."""

    name = "the engine"
    absent_is_ended = True

    def __init__(self, home: Home) -> None:
        self._home = home
        self.jobs: list[Job] = []
        self.lagging: list[list[Job]] = []
        """What is listed next in place of the truth."""
        self.is_away = False
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    async def submit(self, order: Order) -> None:
        self._check()
        where = f"{order.keeper_id}-{order.generation}"
        self._processes[where] = await asyncio.to_thread(self._start, order.stdin)
        self.jobs.append(Job(where, order.keeper_id, order.generation, JobState.RUNNING))

    def _start(self, stdin: bytes) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            stdin=subprocess.PIPE,
            env=self._home.environment(),
            start_new_session=True,
        )
        assert process.stdin is not None
        with process.stdin as pipe:
            pipe.write(stdin)
        return process

    async def find(self, keeper_id: str) -> list[Job]:
        self._check()
        listed = self.lagging.pop(0) if self.lagging else self.jobs
        return [job for job in listed if job.keeper_id == keeper_id]

    async def watch(self) -> AsyncGenerator[Sequence[Job], None]:
        await asyncio.Event().wait()
        yield []

    async def cancel(self, job: Job) -> None:
        self._check()
        await self.kill(job)
        self.jobs = [each for each in self.jobs if each.where != job.where]

    async def explain(self, _job: Job) -> KeeperUnavailable:
        self._check()
        return HostUnusable("it was killed")

    async def joined(self, keeper_id: str, generation: int) -> None: ...

    async def close(self) -> None:
        for job in [*self.jobs]:
            await self.kill(job)

    async def kill(self, job: Job) -> None:
        """End a job, as somebody else does."""
        if (process := self._processes.pop(job.where, None)) is not None:
            process.kill()
            await asyncio.to_thread(process.wait, WAIT)
        ended = job._replace(state=JobState.ENDED)
        self.jobs = [ended if each.where == job.where else each for each in self.jobs]

    def _check(self) -> None:
        if self.is_away:
            raise HostUnreachable("the engine does not answer")


class Server:
    """What a server has of one kernel ``k`` with an engine; the next has the same directory."""

    def __init__(self, home: Home, engine: ProcessEngine, left: dict[str, Any]) -> None:
        self.home, self.engine = home, engine
        self.service = JoinedService(home.state_dir)
        options = {**LOGS, "orphan_timeout": 3600.0, "output_bytes": 10_000}
        self.keepers = Keepers(home.state_dir, **options)
        self.engines = Engines(
            self.service.joining, self.keepers.remote, OwnService(home.state_dir)
        )
        self.words: list[str] = []
        told = {"owner": "ada", "on_words": self.words.append}
        assert self.engines.assign("k", SPEC, left, **told)  # type: ignore[arg-type]
        self.work = self.engines._works["k"]
        self.key = self.work.chosen.key
        self.engines._engines[self.key] = engine
        self.engines._strangers[self.key] = Strangers()
        settings = Settings(_cli_parse_args=False)
        directory = home.path / "mirrors" / "k"
        directory.parent.mkdir(exist_ok=True)
        self.traffic = Traffic("k", KernelState(), directory, self.keepers, settings, Counters())

    async def see(self, jobs: Sequence[Job]) -> None:
        """The watch tells this list."""
        await self.engines._see(self.key, self.engine, jobs)

    async def see_the_end(self) -> None:
        """The watch tells lists until the end of the job is seen, by it or by who looks anyway."""

        async def is_seen() -> bool:
            await self.see(self.engine.jobs)
            return bool(self.engines.why_ended("k"))

        await eventually(is_seen, WAIT)

    async def launch(self) -> None:
        """Launch a process as a kernel's life does, and have it answer."""
        await self.engines.prepare("k")
        asked = {"transport": "ipc", "key": "secret", "signature_scheme": "hmac-sha256"}
        file, info = await self.keepers.remote.prepare("k", asked)
        await self.keepers.launch(
            "k",
            [sys.executable, str(FAKE_KERNEL), "-f", file],
            env=self.home.environment(),
            cwd=str(self.home.root_dir),
            output=self.home.path / "kernel-k.log",
        )
        await self.traffic.connect(info)

        async def is_reachable() -> bool:
            self.traffic.own.probe()
            await asyncio.sleep(0.01)
            return self.traffic.own.answered and self.traffic.own.heard_iopub

        await eventually(is_reachable, WAIT)
        self.traffic.ready()

    async def die(self) -> None:
        """The process ends, and the kernel is buried."""
        await self.keepers.signal("k", signal.SIGKILL)
        async with asyncio.timeout(WAIT):
            await asyncio.shield(self.keepers.exited("k"))
        await self.traffic.settle()
        await self.traffic.close("it died")
        await self.keepers.forget("k")

    async def close(self) -> None:
        """End as a server does that leaves its kernels to the next."""
        self.traffic.leave()
        await self.keepers.close()
        self.engines._engines.clear()  # the jobs go on
        await self.engines.close()
        await self.service.close()


@pytest.fixture
async def engine(home: Home) -> AsyncIterator[ProcessEngine]:
    engine = ProcessEngine(home)
    yield engine
    await engine.close()


@pytest.fixture
async def server(home: Home, engine: ProcessEngine) -> AsyncIterator[Server]:
    server = Server(home, engine, {})
    yield server
    await server.close()


def texts(traffic: Traffic) -> list[str]:
    """What the log has of a kernel's output, from its first message on."""
    client = Client(traffic)
    client.reader = traffic.clients.attach("another", Position(1, 0))
    found = [each for each in client.look() if each.message.msg_type == "stream"]
    assert client.gaps == []
    return [bytes(each.message.part(3)).decode().split('"text": "')[1][:6] for each in found]


async def test_a_job_that_is_listed_after_its_end_was_seen_is_no_use_for_the_next_launch(
    server: Server, engine: ProcessEngine
) -> None:
    await server.engines.prepare("k")
    (job,) = engine.jobs
    await engine.kill(job)
    await server.see_the_end()
    assert server.engines.why_ended("k") == "it was killed"
    # The engine is about to remove it, and says so.
    engine.lagging = [[job]] * 2
    await server.engines.prepare("k")
    (following,) = engine.jobs
    assert following.generation > job.generation


async def test_a_list_from_before_a_jobs_end_does_not_bring_it_back(
    server: Server, engine: ProcessEngine
) -> None:
    await server.engines.prepare("k")
    (job,) = engine.jobs
    await engine.kill(job)
    await server.see_the_end()
    await server.see([job])
    assert not server.engines.is_out("k")
    await server.engines.prepare("k")
    await server.see([job])
    assert server.work.generation > job.generation
    assert server.keepers.remote.is_connected("k")


async def test_a_job_that_cannot_be_ended_does_not_hide_those_of_others(
    server: Server, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.engines.prepare("k")
    (job,) = engine.jobs
    stranger = job._replace(where="stranger", keeper_id="another", state=JobState.ENDED)
    server.engines._strangers[server.key] = Strangers(0)
    await engine.kill(job)
    engine.is_away = True
    cancelled: list[str] = []

    async def cancel(job: Job) -> None:
        cancelled.append(job.where)

    monkeypatch.setattr(engine, "cancel", cancel)
    with pytest.raises(HostUnreachable):
        await server.see([*engine.jobs, stranger])
    await eventually(lambda: cancelled == ["stranger"], WAIT)
    # One that is over, and could not be ended, is tried again by whoever has ended it.
    server.work.over, server.work.is_out = HostUnusable("it was ended"), True
    await server.see(engine.jobs)
    assert cancelled == ["stranger"]
    engine.is_away = False
    monkeypatch.undo()


async def test_how_an_earlier_job_has_ended_is_not_told_of_the_present_one(
    server: Server, engine: ProcessEngine
) -> None:
    await server.engines.prepare("k")
    (first,) = engine.jobs
    await engine.kill(first)
    await server.see_the_end()
    await server.engines.prepare("k")
    (second,) = engine.jobs
    engine.jobs = [first._replace(state=JobState.ENDED)]  # and of the second it knows nothing
    await engine.kill(second)
    await server.see_the_end()
    assert "does not know it" in server.engines.why_ended("k")


async def test_the_job_of_a_dead_kernel_ends_and_its_log_stays(
    server: Server, engine: ProcessEngine
) -> None:
    await server.launch()
    client = Client(server.traffic)
    await client.ran("print before")
    await server.die()
    engine.is_away = True
    with pytest.raises(HostUnreachable):
        await server.engines.rest("k")
    assert server.engines.is_out("k")
    engine.is_away = False
    await server.engines.rest("k")
    assert engine.jobs == []
    assert server.engines.noted_if_out("k") == {}
    assert texts(server.traffic) == ["before"]
    # What is said of the kernel has a place, and nobody looks for a keeper.
    server.traffic.voice.announce("dead")
    await eventually(lambda: "dead" in client.told, WAIT)
    keeper = server.keepers.remote._home("k")
    assert keeper._connection._recovery is None or keeper._connection._recovery.done()
    # Another process gets another job, and the log goes on.
    await server.launch()
    await client.ran("print after!")
    assert texts(server.traffic) == ["before", "after!"]
    assert client.gaps == []


async def test_a_launch_may_come_while_the_job_is_being_ended(
    server: Server, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.launch()
    await server.die()
    (job,) = engine.jobs
    begun, cancel = asyncio.Event(), engine.cancel

    async def hang(_job: Job) -> None:
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(engine, "cancel", hang)
    resting = asyncio.create_task(server.engines.rest("k"))
    await begun.wait()
    resting.cancel()
    await asyncio.wait({resting})
    monkeypatch.setattr(engine, "cancel", cancel)
    await server.engines.prepare("k")
    (following,) = engine.jobs
    assert following.generation > job.generation


@pytest.mark.parametrize("left", ["rested", "killed"])
async def test_the_log_of_a_dead_kernel_without_a_job_can_be_read_by_the_next_server(
    server: Server, engine: ProcessEngine, home: Home, left: str
) -> None:
    await server.launch()
    await Client(server.traffic).ran("print before")
    await server.die()
    if left == "rested":
        await server.engines.rest("k")
    noted = server.engines.noted_if_out("k")
    assert bool(noted) == (left == "killed")
    await server.close()
    for job in engine.jobs:
        await engine.kill(job)
    following = Server(home, engine, noted)
    try:
        heard = await following.traffic.meet(None, server.traffic.log.end)
        await following.traffic.resume(heard)
        assert texts(following.traffic) == ["before"]
        following.traffic.voice.announce("dead")
        await following.launch()
        client = Client(following.traffic)
        await client.ran("print after!")
        assert texts(following.traffic) == ["before", "after!"]
    finally:
        await following.close()


async def test_a_dead_kernels_log_can_be_read_while_its_engine_is_away(
    server: Server, engine: ProcessEngine, home: Home
) -> None:
    await server.launch()
    await Client(server.traffic).ran("print before")
    await server.die()
    noted = server.engines.noted_if_out("k")
    await server.close()
    following, engine.is_away = Server(home, engine, noted), True
    try:
        heard = await following.traffic.meet(None, server.traffic.log.end)
        await following.traffic.resume(heard)
        assert texts(following.traffic) == ["before"]
        # Its job may have more of the log: nothing gets a number here before that is known.
        following.traffic.voice.announce("dead")
        assert following.traffic.log.end == heard.end
        with pytest.raises(KeeperUnavailable):
            await following.engines.rest("k")
        engine.is_away = False
        for job in engine.jobs:
            await engine.kill(job)
        with pytest.raises(KeeperUnavailable):  # it is only seen now that nobody is there
            await following.engines.rest("k")
        await following.engines.rest("k")
        assert engine.jobs == []
    finally:
        await following.close()


async def test_a_job_whose_engine_has_not_answered_is_ended_before_the_next(
    server: Server, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = engine.submit

    async def late(order: Order) -> None:
        await submit(order)
        raise HostUnreachable("the engine does not answer")

    monkeypatch.setattr(engine, "submit", late)
    with pytest.raises(HostUnreachable, match="does not answer"):
        await server.engines.prepare("k")
    (lost,) = engine.jobs
    assert server.engines.is_out("k")
    await server.see(engine.jobs)
    monkeypatch.setattr(engine, "submit", submit)
    await server.engines.prepare("k")
    (following,) = engine.jobs
    assert following.generation > lost.generation
    # What was refused has left nothing.
    await server.engines.end("k")

    async def refuse(_order: Order) -> None:
        raise HostUnusable("there is no such image")

    monkeypatch.setattr(engine, "submit", refuse)
    with pytest.raises(HostUnusable, match="no such image"):
        await server.engines.prepare("k")
    assert not server.engines.is_out("k")


async def test_an_engine_that_fails_is_watched_again(
    server: Server, engine: ProcessEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: list[Exception | None] = []
    looks = asyncio.Event()

    class Quick:
        def __init__(self, _name: str) -> None: ...

        def on_seen(self, _now: float) -> None:
            looks.set()

        def on_end(self, error: Exception | None) -> float:
            ended.append(error)
            return 0.0

    async def watch() -> AsyncGenerator[Sequence[Job], None]:
        if not ended:
            raise ValueError("no sense")
        if len(ended) > 1:
            yield engine.jobs
            await asyncio.Event().wait()

    monkeypatch.setattr(module, "Troubles", Quick)
    monkeypatch.setattr(engine, "watch", watch)
    watching = asyncio.create_task(server.engines._watch(server.key))
    async with asyncio.timeout(WAIT):
        await looks.wait()
    assert [type(each) for each in ended] == [ValueError, type(None)]
    watching.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await watching
