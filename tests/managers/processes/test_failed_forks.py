"""Forks and launches in place of them that fail, or that nobody waits for: no process is left."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import psutil
import pytest

from app.managers.processes.forking.link import Order, Recipe
from app.managers.processes.forking.provisioner import read_once
from app.managers.processes.forking.servers import ForkServers
from tests.conftest import MakeServer
from tests.keeper.conftest import connected
from tests.support.home import Home
from tests.support.kernelspecs import Spec
from tests.support.processes import children, eventually
from tests.support.rest import RestClient, RestError

WAIT = 60  # seconds

STANZA: dict[str, Any] = {
    "provisioner_name": "kernelkeep-fork",
    "config": {"limits": {"AS": 2**70}},  # which no system can be told
}
SLEEPING = Spec(
    argv=("/bin/sh", "-c", "exec sleep 1000", "{connection_file}"),
    metadata={"kernel_provisioner": STANZA},
)


@pytest.mark.parametrize("mode", ["keep", "stop"])
async def test_one_whose_limits_cannot_be_set_does_not_run(
    make_server: MakeServer, mode: str
) -> None:
    server = make_server("--on-shutdown", mode, specs={"sleeping": SLEEPING})
    async with RestClient(server.url, server.token) as rest:
        with pytest.raises(RestError, match="500"):
            await rest.start_kernel("sleeping")
        assert await rest.kernels() == []

        def sleeps(process: psutil.Process) -> bool:
            return "sleep" in process.cmdline()

        await eventually(lambda: not any(map(sleeps, children(server.pid))), WAIT)


async def test_a_fork_that_nobody_waits_for_any_more_is_ended_and_reaped(home: Home) -> None:
    keeper = await connected(home.state_dir, orphan_timeout=3600)
    assert keeper.pid is not None
    process = psutil.Process(keeper.pid)
    forks = ForkServers(keeper)
    env = home.environment()
    recipe = Recipe((sys.executable,), (), read_once(env, ()))
    output = os.open(os.devnull, os.O_WRONLY)
    reads, writes = os.pipe()
    order = Order(["kernel"], ["-f", "none"], env, str(home.root_dir), output, {}, reads)
    try:
        async with asyncio.timeout(WAIT):
            pids = [await forks.fork(recipe, order)]
        # The second one is there, too.
        await eventually(lambda: len(process.children()) == 3, WAIT)
        await asyncio.gather(*(server.ready for server in forks._links))
        before = {child.pid for child in process.children()} - {*pids}
        for turns in range(6):  # at one place or another between the request and its answer
            forking = asyncio.create_task(forks.fork(recipe, order))
            for _ in range(turns):
                await asyncio.sleep(0.001 * turns)
            forking.cancel()
            await asyncio.wait({forking})
        os.close(writes)  # as who asks for a kernel does when that fails
        # Nor is there a zombie.
        await eventually(lambda: {child.pid for child in process.children()} == before, WAIT)
        assert all(server.alive for server in forks._links)
    finally:
        os.close(output)
        os.close(reads)
        await forks.close()
        await keeper.close()
