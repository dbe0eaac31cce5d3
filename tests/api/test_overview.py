"""The overview of all one's kernels: once, and as a stream of what changes."""

from __future__ import annotations

import asyncio

from app.managers.kernels.departures import BY_CLIENT, BY_REQUEST
from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.executions import Executions
from tests.support.identities import token
from tests.support.kernelspecs import FAKE_SPECS, Spec
from tests.support.overview import HUNG, PATH, Overview, followed
from tests.support.owners import MANY, USER
from tests.support.rest import RestClient
from tests.support.running import KernelStarter


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
    """What has a time limit is asked nothing, as its time may be up before."""
    specs = {**FAKE_SPECS, "short-lived": Spec(metadata={"cull_idle_timeout": 0.2})}
    culling = ("--cull-idle-timeout", "3600", "--cull-interval", "0.1")
    limits = ("--limits-by-name", '{"bob": {"lifetime": 1}}')
    server = make_server(*MANY, *culling, *limits, "--no-autorestart", specs=specs)

    async def ended(rest: RestClient, stream: Overview, name: str) -> str:
        return await reason(stream, (await rest.start_kernel(name))["id"])

    async def reason(stream: Overview, kernel_id: str) -> str:
        gone = await stream.until(lambda event: event.get("kernel_id") == kernel_id)
        assert gone["at"].endswith("Z")
        return str(gone["kernel"]["reason"])

    async with RestClient(server.url, token("bob", USER)) as his, followed(his) as stream:
        told = await ended(his, stream, "fake")
        assert told == "Its time is up, by its owner's limit lifetime"

    ada = token("ada", USER)
    async with RestClient(server.url, ada) as hers, followed(hers) as stream:
        assert (await ended(hers, stream, "short-lived")).startswith("Culled after")

        died = (await hers.start_kernel("fake"))["id"]
        await Executions(hers, died).begin("die 3")
        assert "code 3" in await reason(stream, died)  # culled as it is dead; told is why it died

        asked = (await hers.start_kernel("fake"))["id"]
        async with await JupyterChannels.connect(server.ws_url, asked, ada) as channels:
            await channels.send("shutdown_request", {"restart": False}, "control")
            assert await reason(stream, asked) == BY_CLIENT


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


async def test_an_administrator_follows_one_owner(make_server: MakeServer) -> None:
    server = make_server(*MANY)
    async with (
        RestClient(server.url, token("ada", USER)) as hers,
        RestClient(server.url, token("bob", USER)) as his,
        RestClient(server.url, server.token) as admin,
    ):
        other, kernel, over = [
            (await rest.start_kernel("fake"))["id"] for rest in (his, hers, hers)
        ]
        for rest, kernel_id in ((his, await his.start_kernel("fake")), (hers, {"id": over})):
            await rest.request("DELETE", f"/api/kernels/{kernel_id['id']}", 204)
        async with followed(admin, owner="ada") as stream:
            await stream.until(lambda event: event["type"] == "whole")
            assert (set(stream.rows), stream.gone) == ({kernel}, [over])
            await his.request("DELETE", f"/api/kernels/{other}", 204)
            await hers.request("DELETE", f"/api/kernels/{kernel}", 204)
            await stream.until(lambda event: event["type"] == "gone")
            assert stream.gone == [over, kernel]
        async with followed(his, owner="ada") as stream:
            await stream.until(lambda event: event["type"] == "whole")
            assert (stream.rows, stream.gone) == ({}, [])


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
