"""What needs no patience is stopped at once, long before anything is forced.

The server of this module would wait so long that a stop which is not prompt cannot be missed.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest

from tests.conftest import servers
from tests.support.processes import children
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess

PROMPT = 15.0  # seconds on a loaded machine; the first thing that is forced comes after 20


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server("--shutdown-wait-time", "40")


@pytest.mark.parametrize("name", ["fake-slow", "fake-unbound", "fake-silent", "python3"])
async def test_one_that_is_still_starting_is_stopped_at_once(
    server: ServerProcess, start: KernelStarter, name: str
) -> None:
    kernel = await start(name, ready=False)
    pending = await kernel.channels.send_execute("print never")
    async with asyncio.timeout(PROMPT):
        await kernel.rest.delete(kernel.id)
    assert (await kernel.channels.exchange(pending)).reply["status"] == "aborted"
    assert (await kernel.channels.closed()).code == 4404
    assert children(server.pid) == []
    assert server.home.leftovers() == []


async def test_a_kernel_that_dies_while_it_is_stopped_is_not_restarted(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("fake-no-shutdown")
    pid = await kernel.pid()
    deletion = asyncio.create_task(kernel.rest.delete(kernel.id))
    await kernel.becomes("terminating")
    os.kill(pid, signal.SIGKILL)
    async with asyncio.timeout(PROMPT):
        await deletion
    assert (await kernel.channels.closed()).code == 4404
    assert "restarting" not in [m.state for m in kernel.channels.log]
    assert children(server.pid) == []


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("fake", "print begun\nsleep 600"),
        ("fake-message", "print begun\nsleep 600"),
        ("python3", "print('begun', flush=True)\nwhile True: pass"),
    ],
)
@pytest.mark.parametrize("action", ["delete", "restart"])
async def test_one_that_runs_something_is_interrupted_first(
    start: KernelStarter, action: str, name: str, code: str
) -> None:
    kernel = await start(name)
    await kernel.begins(code)
    async with asyncio.timeout(PROMPT):
        await getattr(kernel.rest, action)(kernel.id)
    if action == "delete":
        assert (await kernel.channels.closed()).code == 4404
