"""The service below a path prefix, behind real proxies that give up after 5 s of silence."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import httpx

from tests.support.channels import Connector
from tests.support.executions import NDJSON, SSE, Executions, Json
from tests.support.jupyterlab import JupyterLab
from tests.support.proxies import PREFIX, TIMEOUT, Nginx, Proxy
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

# Longer than two of the proxies' timeouts. By hand: KERNELKEEP_TEST_IDLE=60 for a whole minute.
IDLE = float(os.environ.get("KERNELKEEP_TEST_IDLE", "12"))
FIVE_MEGABYTES = 5 * 1000 * 1000
FRAME_TIMEOUT = 60.0


async def each(proxies: list[Proxy], use: Any, *arguments: Any) -> None:
    """``use`` of all at once, as the waiting is the same; tells with which it failed."""

    async def named(proxy: Proxy) -> None:
        try:
            await use(proxy, *arguments)
        except BaseException as error:
            error.add_note(f"through {type(proxy).__name__}: {proxy.output()[-2000:]}")
            raise

    async with asyncio.TaskGroup() as group:
        for proxy in proxies:
            group.create_task(named(proxy))


async def test_streams_come_at_once_and_survive_silence(
    proxies: list[Proxy], server: ServerProcess
) -> None:
    await each(proxies, follow_a_silent_execution, server)


async def follow_a_silent_execution(proxy: Proxy, server: ServerProcess) -> None:
    async with RestClient(proxy.url, server.token) as rest, AsyncExitStack() as stack:
        kernel = await rest.start_kernel("fake")
        connect = Connector(proxy.ws_url, server.token, stack)
        sockets = [await connect(kernel["id"], framing=name) for name in ("legacy", "v1")]
        executions = Executions(rest, kernel["id"])
        begun = await executions.begin("print before\ninput and?", allow_stdin=True)
        streams = [Followed(executions.events(begun, accept)) for accept in (SSE, NDJSON)]
        # The kernel says no more than this until it is answered: nothing pushes it through.
        for stream in streams:
            await stream.until("input_request")
        for channels in sockets:
            await channels.seen(lambda m: m.content.get("text") == "before\n")
        await asyncio.sleep(IDLE)
        await rest.request("POST", f"{executions.path}/{begun}/input", 204, json={"value": "after"})
        for stream in streams:
            assert (await stream.until("ended"))["state"] == "ok"
            assert [event["text"] for event in stream.of("stream")][-1] == "after\n"
        for channels in sockets:
            await channels.seen(lambda m: m.content.get("text") == "after\n")
            assert (await channels.execute("result 42")).result == "42"
        await rest.delete(kernel["id"])


class Followed:
    """A stream that is read on one connection, piece by piece."""

    def __init__(self, events: AsyncIterator[Json]) -> None:
        self._events = events
        self._seen: list[Json] = []

    async def until(self, event_type: str) -> Json:
        """The next event of this type."""
        async for event in self._events:
            self._seen.append(event)
            if event["type"] == event_type:
                return event
        raise AssertionError(f"ended without {event_type}: {self._seen}")

    def of(self, event_type: str) -> list[Json]:
        return [event for event in self._seen if event["type"] == event_type]


async def test_frames_of_5_mb_pass_both_ways(proxies: list[Proxy], server: ServerProcess) -> None:
    await each(proxies, send_and_receive_much, server)


async def send_and_receive_much(proxy: Proxy, server: ServerProcess) -> None:
    async with RestClient(proxy.url, server.token) as rest, AsyncExitStack() as stack:
        kernel = await rest.start_kernel("fake")
        connect = Connector(proxy.ws_url, server.token, stack)
        for framing in ("legacy", "v1"):
            channels = await connect(kernel["id"], framing=framing)
            buffers = [b"x" * FIVE_MEGABYTES]
            content = {"comm_id": "c", "data": {}}
            exchange = await channels.request(
                "comm_msg", content, buffers=buffers, replies=False, timeout=FRAME_TIMEOUT
            )
            (echo,) = exchange.of_type("comm_msg")
            assert echo.buffers == buffers
            exchange = await channels.execute(f"huge {FIVE_MEGABYTES}", timeout=FRAME_TIMEOUT)
            assert exchange.text == "x" * FIVE_MEGABYTES
            await channels.close()
        await rest.delete(kernel["id"])


async def test_what_the_service_tells_about_itself_is_below_the_prefix(
    proxies: list[Proxy], server: ServerProcess
) -> None:
    await each(proxies, read_about_it, server)


async def read_about_it(proxy: Proxy, server: ServerProcess) -> None:
    async with RestClient(proxy.url, server.token) as rest:
        document = (await rest.request("GET", "/openapi.json")).json()
        assert [item["url"] for item in document["servers"]] == [PREFIX]
        specs = (await rest.request("GET", "/api/kernelspecs")).json()["kernelspecs"]
        logo = httpx.URL(proxy.url).join(specs["fake"]["resources"]["logo-64x64"])
        await rest.request("GET", str(logo))
        home = await rest.request("GET", "/")
        (script,) = re.findall(r'<script [^>]*src="([^"]+)"', home.text)
        file = httpx.URL(f"{proxy.url}/").join(script)
        assert file.path.startswith(f"{PREFIX}/page/")
        await rest.request("GET", str(file))


async def test_jupyterlab_works_in_gateway_mode_through_nginx(
    nginx: Nginx, server: ServerProcess
) -> None:
    env = {"SSL_CERT_FILE": str(nginx.certificate.certificate)}
    with JupyterLab(server, url=nginx.url, env=env) as lab:
        await open_a_notebook(lab)


async def open_a_notebook(lab: JupyterLab) -> None:
    async def request(method: str, path: str, status: int, **more: Any) -> Any:
        return await asyncio.to_thread(lab.request, method, path, status, **more)

    specs = (await request("GET", "/api/kernelspecs", 200))["kernelspecs"]
    assert {"python3", "fake"} <= set(specs)
    body = {"path": "a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "python3"}}
    session = await request("POST", "/api/sessions", 201, json=body)
    async with AsyncExitStack() as stack:
        channels = await Connector(lab.ws_url, lab.token, stack)(session["kernel"]["id"])
        assert (await channels.execute("x = 6 * 7; x", timeout=FRAME_TIMEOUT)).result == "42"
        exchange = await channels.execute("print(input('name? '))", answers=["Ada"])
        assert exchange.text == "Ada\n"
        # A cell that is silent for longer than nginx waits.
        code = f"import time; time.sleep({TIMEOUT + 2}); x"
        assert (await channels.execute(code)).result == "42"
    await request("DELETE", f"/api/sessions/{session['id']}", 204)
