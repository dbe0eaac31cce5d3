"""Forks and launches in place of them that fail, or that nobody waits for: no process is left."""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import psutil
import pytest

from app.managers.fork_link import Order, Recipe
from app.managers.fork_provisioner import read_once
from app.managers.forking import ForkServers
from tests.conftest import MakeServer
from tests.support.home import Home
from tests.support.kernelspecs import Spec
from tests.support.processes import children, eventually, usage
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
    forks = ForkServers()
    env = home.environment()
    recipe = Recipe((sys.executable,), (), read_once(env, ()))
    output = os.open(os.devnull, os.O_WRONLY)
    order = Order(["kernel"], ["-f", "none"], env, str(home.root_dir), output, {})
    try:
        async with asyncio.timeout(WAIT):
            first, server = await forks.fork(recipe, order)
        assert server.pid is not None
        process = psutil.Process(server.pid)
        server.abandon(first)
        await eventually(lambda: not process.children(), WAIT)
        before = usage(server.pid)
        for turns in range(6):  # at one place or another between the request and its answer
            forking = asyncio.create_task(server.fork(order))
            for _ in range(turns):
                await asyncio.sleep(0.001 * turns)
            forking.cancel()
            await asyncio.wait({forking})
            if not forking.cancelled():
                server.abandon(forking.result())
        # Nor is there a zombie.
        await eventually(lambda: not process.children() and usage(process.pid) == before, WAIT)
        assert server.alive
    finally:
        os.close(output)
        await forks.close()
