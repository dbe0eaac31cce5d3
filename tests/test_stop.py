"""The stop drill: a server with much to do ends in time, and everybody is told.

These are the tests of `app.lifespan`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.conftest import MakeServer
from tests.support.channels import Close
from tests.support.events import EventListener, listening
from tests.support.executions import NDJSON, SSE, Executions, stream
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.running import RunningKernel, kernels_of, not_ready
from tests.support.server import ServerProcess

BOUND = 12.0  # seconds from the signal to the end; 7 of them are patience with a stubborn kernel
KERNELS = ["fake-stubborn", "fake-children", "fake-slow", *["fake"] * 17]

RESTART = Close(1012, "the server is shutting down")


class Followers:
    """Clients of each kind of stream of a kernel."""

    def __init__(self, kernel: RunningKernel, execution_id: str) -> None:
        self._rest = kernel.rest
        path = f"/api/kernels/{kernel.id}"
        self._paths = [f"{path}/executions/{execution_id}/events", f"{path}/messages"]
        self._last: list[asyncio.Task[str]] = []

    async def begin(self) -> None:
        """Returns when each has connected."""
        begun = []
        for path in self._paths:
            for accept in (SSE, NDJSON):
                begun.append(event := asyncio.Event())
                self._last.append(asyncio.create_task(self._follow(path, accept, event)))
        async with asyncio.timeout(30):
            for event in begun:
                await event.wait()

    async def _follow(self, path: str, accept: str, begun: asyncio.Event) -> str:
        last = ""
        async for event in stream(self._rest, path, accept):
            begun.set()
            last = event["type"]
        return last

    async def told(self) -> list[str]:
        """The type of each stream's last event."""
        return await asyncio.gather(*self._last)


async def refusals(server: ServerProcess, kernel: RunningKernel) -> list[httpx.Response]:
    """The answers to every kind of new work."""
    async with RestClient(server.url, server.token) as rest:
        await rest.request("GET", "/livez")
        path = f"/api/kernels/{kernel.id}"
        session = {"path": "a.ipynb", "type": "notebook", "kernel": {"name": "fake"}}
        answers = [
            await rest.http.post("/api/kernels", json={"name": "fake"}),
            await rest.http.post("/api/sessions", json=session),
            await rest.http.post(f"{path}/executions", json={"code": "print late"}),
            await rest.http.post(f"{path}/restart"),
        ]
    return answers


async def refused_websockets(kernel: RunningKernel, server: ServerProcess) -> list[int]:
    statuses = []
    with pytest.raises(InvalidStatus) as refused:
        await kernel.connect()
    statuses.append(refused.value.response.status_code)
    with pytest.raises(InvalidStatus) as refused:
        async with listening(server):
            pass
    statuses.append(refused.value.response.status_code)
    assert "Retry-After" in refused.value.response.headers
    return statuses


async def test_a_server_with_much_to_do_ends_in_time_and_everybody_is_told(
    make_server: MakeServer, record_property: Callable[[str, object], None]
) -> None:
    server = make_server()
    async with AsyncExitStack() as stack:
        start = await stack.enter_async_context(kernels_of(server))
        kernels = await asyncio.gather(
            *(start(name, ready=name != "fake-slow") for name in KERNELS)
        )
        start.started.clear()  # nothing to delete afterwards
        stubborn, busy = kernels[0], kernels[-1]
        v1 = await busy.connect(framing="v1")
        listener: EventListener = await stack.enter_async_context(listening(server))
        executions = Executions(busy.rest, busy.id)
        running = await executions.begin("print a\nsleep 600")
        await executions.until(running, "started")
        waiting = asyncio.create_task(executions.get(running, wait=60))
        posted = asyncio.create_task(executions.post("print never", query={"wait": 60}))
        followers = Followers(busy, running)
        await followers.begin()
        # The request that is held is there when it is listed.
        await eventually(lambda: _count(executions, 2))

        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        await not_ready(server)
        answers = await refusals(server, stubborn)
        statuses = await refused_websockets(stubborn, server)
        code = await asyncio.to_thread(server.wait)
        took = time.monotonic() - began

        for answer in answers:
            assert (answer.status_code, answer.json()["code"]) == (503, "server_stopping")
            assert int(answer.headers["Retry-After"]) > 0
        assert statuses == [503, 503]
        assert (await waiting)["state"] == "running"
        assert (await posted).json()["state"] == "queued"
        assert set(await followers.told()) == {"closing"}
        for channels in (*(kernel.channels for kernel in kernels), v1):
            assert await channels.closed() == RESTART
        assert await listener.closed() == RESTART
    assert code == 0
    assert took < BOUND
    record_property("seconds", round(took, 2))  # to be found in --junit-xml
    server.stop()  # looks for what is left
    output = server.output()
    assert "timeout graceful shutdown exceeded" not in output
    assert "Traceback" not in output


async def _count(executions: Executions, count: int) -> bool:
    return len(await executions.listed()) == count
