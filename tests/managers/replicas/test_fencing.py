"""A keeper with two servers: each kernel obeys the one that has come with the highest term.

`app.keeper.audience` tells each server of its own kernels alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.managers.processes.keeper.client import Keeper
from app.managers.processes.keeper.greeting import ReplicaTerms
from app.managers.processes.keeper.link import KeeperRefuses
from app.managers.replicas.terms import Terms
from tests.keeper.conftest import Ear, connected
from tests.support.home import Home
from tests.support.processes import eventually

SLEEP = ["sleep", "1000"]


class Server:
    """One replica's end of the keeper."""

    def __init__(self, name: str, home: Home) -> None:
        self.terms = Terms()
        self.fenced: list[str] = []
        self.keeper = Keeper(
            home.state_dir, orphan_timeout=60.0, terms=ReplicaTerms(name, self.terms.of)
        )
        self.keeper.on_fenced = self.fenced.append


@pytest.fixture
async def home() -> AsyncIterator[Home]:
    home = Home()
    yield home
    for process in home.processes():
        process.kill()
    home.remove()


async def test_a_replica_that_another_has_succeeded_is_refused_and_told(home: Home) -> None:
    first, second = Server("first", home), Server("second", home)
    output = Path(home.state_dir, "k.log")
    first.terms.begin("k")
    kept = await first.keeper.launch("k", SLEEP, env={}, cwd="/", output=output)
    # What one replica has, another is not shown when it greets the keeper.
    await second.keeper.connect()
    assert second.keeper.is_empty
    with pytest.raises(KeeperRefuses, match="has let go of kernel k"):
        await second.keeper.adopt("k", kept.pid, kept.start_time, output)
    second.terms.take("k", first.terms.of("k") + 1)
    assert await second.keeper.adopt("k", kept.pid, kept.start_time, output) is not None
    await eventually(_is(first.fenced, ["k"]))
    with pytest.raises(KeeperRefuses, match="another replica has kernel k"):
        await first.keeper.settle("k")
    # The end of the process is told to the one that has the kernel, which alone can cause it.
    exited = second.keeper.exited("k")
    await second.keeper.signal("k", 9)
    assert await asyncio.wait_for(exited, 30) == -9
    with pytest.raises(KeeperRefuses, match="another replica has kernel k"):
        await first.keeper.launch("k", SLEEP, env={}, cwd="/", output=output)
    assert await second.keeper.kept() != {}
    await second.keeper.forget("k")
    for server in (first, second):
        await server.keeper.close()


async def test_a_server_that_is_no_replica_gets_no_kernel_of_replicas(home: Home) -> None:
    first = Server("first", home)
    output = Path(home.state_dir, "k.log")
    first.terms.begin("k")
    await first.keeper.launch("k", SLEEP, env={}, cwd="/", output=output)
    alone = await connected(home.state_dir, orphan_timeout=60.0)
    assert alone.is_empty
    with pytest.raises(KeeperRefuses, match="another replica has kernel k"):
        await alone.settle("k")
    await first.keeper.forget("k")
    for keeper in (alone, first.keeper):
        await keeper.close()


async def test_only_unknown_kernels_of_dead_replicas_are_strays(home: Home) -> None:
    first, second = Server("first", home), Server("second", home)
    for server, kernel_id in ((first, "stray"), (first, "stored"), (second, "living")):
        server.terms.begin(kernel_id)
        output = Path(home.state_dir, f"{kernel_id}.log")
        await server.keeper.launch(kernel_id, SLEEP, env={}, cwd="/", output=output)
    first.terms.begin("log")  # whose process was not launched yet
    logs = {name: home.path / name for name in ("stray", "stored", "log")}
    for kernel_id, directory in logs.items():
        await first.keeper.hear(Ear(first.keeper, kernel_id).line, directory, None, anew=False)
    stray = first.keeper.exited("stray")
    await second.keeper.end_strays(["first", "another"], ["stored"])
    await asyncio.wait({stray}, timeout=30)
    assert {*await second.keeper.kept()} == {"stored", "living"}
    assert [name for name, directory in logs.items() if directory.exists()] == ["stored"]
    await first.keeper.forget("stored")
    await second.keeper.forget("living")
    for server in (first, second):
        await server.keeper.close()


async def test_a_keeper_that_was_killed_is_told_the_terms_anew(home: Home) -> None:
    first, second = Server("first", home), Server("second", home)
    output = Path(home.state_dir, "k.log")
    first.terms.begin("k")
    kept = await first.keeper.launch("k", SLEEP, env={}, cwd="/", output=output)
    second.terms.take("k", first.terms.of("k") + 1)
    await second.keeper.adopt("k", kept.pid, kept.start_time, output)
    pid = first.keeper.pid
    assert pid is not None
    for process in home.processes():
        if process.pid == pid:
            process.kill()
            await asyncio.to_thread(process.wait)

    async def has_another() -> bool:
        return second.keeper.pid not in (None, pid)

    await eventually(has_another, 30)
    with pytest.raises(KeeperRefuses, match="another replica has kernel k"):
        await first.keeper.settle("k")
    await second.keeper.forget("k")
    for server in (first, second):
        await server.keeper.close()


def _is(found: list[str], expected: list[str]):  # type: ignore[no-untyped-def]
    async def reached() -> bool:
        return found[:1] == expected

    return reached
