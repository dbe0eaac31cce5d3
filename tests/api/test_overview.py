"""The overview of all one's kernels: once, and as a stream of what changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app.managers.kernels.departures import BY_CLIENT, BY_REQUEST
from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.executions import Executions
from tests.support.identities import token
from tests.support.owners import MANY, USER
from tests.support.rest import RestClient
from tests.support.running import KernelStarter

PATH = "/api/overview"
HUNG = 60  # seconds


class Stream:
    """The overview as a stream, read as far as a test wants."""

    def __init__(self, lines: AsyncIterator[str]) -> None:
        self._lines = lines
        self.rows: dict[str, dict[str, Any]] = {}
        self.whole = False

    async def next(self) -> dict[str, Any]:
        """The next event, which `rows` and `whole` take note of."""
        async for line in self._lines:
            if not line:
                continue
            event: dict[str, Any] = json.loads(line)
            if event["type"] == "kernel":
                self.rows[event["kernel"]["id"]] = event
            elif event["type"] == "gone":
                self.rows.pop(event["kernel_id"], None)  # or it ended before
            else:
                assert event == {"type": "whole", "kernels": len(self.rows)}
                self.whole = True
            return event
        raise EOFError

    async def until(self, wanted: Any) -> dict[str, Any]:
        """The first event of which ``wanted`` is true."""
        async with asyncio.timeout(HUNG):
            while True:
                event = await self.next()
                if wanted(event):
                    return event


@asynccontextmanager
async def followed(rest: RestClient) -> AsyncIterator[Stream]:
    headers = {"Accept": "application/x-ndjson"}
    async with rest.http.stream("GET", PATH, headers=headers, timeout=HUNG) as response:
        assert response.status_code == 200
        assert response.headers["Content-Type"].startswith("application/x-ndjson")
        yield Stream(response.aiter_lines())


async def test_every_kernel_is_told_once(rest: RestClient, start: KernelStarter) -> None:
    kernel = await start("fake")
    (row,) = (await rest.request("GET", PATH)).json()
    assert row["type"] == "kernel"
    assert row["kernel"] == await rest.kernel(kernel.id)
    assert row["running"] is None
    assert (row["waiting"], row["host"]) == (0, None)
    assert row["log_bytes"] > 0
    assert row["state_since"].endswith("Z")


async def test_a_stream_tells_what_becomes_of_kernels(
    rest: RestClient, start: KernelStarter
) -> None:
    kernel = await start("fake")
    async with followed(rest) as stream:
        await stream.until(lambda event: event["type"] == "whole")
        assert set(stream.rows) == {kernel.id}

        # The first line that says something, and no more than that.
        execution = await kernel.busy("sleep 600\nprint no more")
        row = await stream.until(lambda event: event.get("running") and event["running"]["code"])
        assert row["running"]["execution_id"] == execution
        assert row["running"]["code"] == "sleep 600"
        assert row["kernel"]["execution_state"] == "busy"

        await stream.until(lambda event: event.get("memory"))
        await rest.request("POST", f"/api/kernels/{kernel.id}/interrupt", 204)
        row = await stream.until(lambda event: event["kernel"]["execution_state"] == "idle")
        assert row["running"] is None

        other = await rest.start_kernel("fake")
        await stream.until(lambda event: event.get("kernel", {}).get("id") == other["id"])
        await rest.request("DELETE", f"/api/kernels/{other['id']}", 204)
        gone = await stream.until(lambda event: event["type"] == "gone")
        assert gone["kernel_id"] == other["id"]
        assert gone["kernel"] == {**gone["kernel"], "execution_state": "dead", "reason": BY_REQUEST}
    # Who comes later is told of it, too, before the kernels that there are.
    async with followed(rest) as stream:
        assert await stream.until(lambda event: event.get("kernel_id") == other["id"]) == gone
        assert not stream.whole
        await stream.until(lambda event: event["type"] == "whole")
        assert set(stream.rows) == {kernel.id}
        again = await rest.start_kernel("fake", kernel_id=other["id"])
        await stream.until(lambda event: event.get("kernel", {}).get("id") == again["id"])
    async with followed(rest) as stream:
        await stream.until(lambda event: event["type"] == "whole")
        assert set(stream.rows) == {kernel.id, again["id"]}


async def test_each_end_has_its_reason(make_server: MakeServer) -> None:
    limits = ("--cull-idle-timeout", "0.5", "--cull-interval", "0.1", "--owner-limits")
    server = make_server(*limits, "lifetime=2", "--no-autorestart")
    async with RestClient(server.url, server.token) as rest, followed(rest) as stream:

        async def ended(kernel_id: str) -> str:
            gone = await stream.until(lambda event: event.get("kernel_id") == kernel_id)
            assert gone["at"].endswith("Z")
            return str(gone["kernel"]["reason"])

        assert (await ended((await rest.start_kernel("fake"))["id"])).startswith("Culled after")

        old = (await rest.start_kernel("fake"))["id"]
        await Executions(rest, old).begin("sleep 600")
        assert await ended(old) == "Its time is up, by its owner's limit lifetime"

        died = (await rest.start_kernel("fake"))["id"]
        await Executions(rest, died).begin("die 3")
        assert "3" in await ended(died)  # culled as it is dead; told is why it died

        asked = (await rest.start_kernel("fake"))["id"]
        async with await JupyterChannels.connect(server.ws_url, asked, server.token) as channels:
            await channels.send("shutdown_request", {"restart": False}, "control")
            assert await ended(asked) == BY_CLIENT


async def test_each_owner_sees_their_own(make_server: MakeServer) -> None:
    server = make_server(*MANY)
    ada, bob = token("ada", USER), token("bob", USER)
    async with RestClient(server.url, ada) as hers, RestClient(server.url, bob) as his:
        kernel = await hers.start_kernel("fake")
        assert (await his.request("GET", PATH)).json() == []
        async with followed(his) as stream:
            await stream.until(lambda event: event["type"] == "whole")
            share = {"name": "bob", "access": "read"}
            await hers.request("POST", f"/api/kernels/{kernel['id']}/shares", 201, json=share)
            await stream.until(lambda event: event["type"] == "kernel")
            path = f"/api/kernels/{kernel['id']}/shares"
            await hers.request("DELETE", path, 204, params={"name": "bob"})
            gone = await stream.until(lambda event: event["type"] == "gone")
            # It has not ended, and what has become of it is not for those who may not see it.
            unknown = {"at": None, "kernel": None, "host": None}
            assert gone == {"type": "gone", "kernel_id": kernel["id"], **unknown}
            other = (await hers.start_kernel("fake"))["id"]
            await hers.request("DELETE", f"/api/kernels/{other}", 204)
            mine = (await his.start_kernel("fake"))["id"]
            await his.request("DELETE", f"/api/kernels/{mine}", 204)
            gone = await stream.until(lambda event: event["type"] == "gone")
            assert gone["kernel_id"] == mine


async def test_a_server_that_stops_ends_the_stream(make_server: MakeServer) -> None:
    server = make_server()
    async with RestClient(server.url, server.token) as rest, followed(rest) as stream:
        await stream.until(lambda event: event["type"] == "whole")
        stopped = asyncio.create_task(asyncio.to_thread(server.stop))
        async with asyncio.timeout(HUNG):
            try:
                while True:
                    await stream.next()
            except EOFError:
                pass
        await stopped
