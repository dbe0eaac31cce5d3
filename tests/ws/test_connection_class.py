"""``--kernel-websocket-connection-class``: what a client connects to is replaceable."""

from __future__ import annotations

from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.framing import FramingName
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.running import kernels_of

OPTION = "--kernel-websocket-connection-class"
MODULE = "tests.support.connections"


async def test_a_subclass_decides_what_clients_meet(make_server: MakeServer) -> None:
    server = make_server(OPTION, f"{MODULE}:Curt")
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake"))["id"]
        channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
        async with channels:
            close = await channels.closed()
        assert (close.code, close.reason) == (4123, "not today")
        assert list(channels.log) == []


async def test_a_subclass_can_add_to_what_there_is(
    make_server: MakeServer, framing: FramingName
) -> None:
    server = make_server(OPTION, f"{MODULE}:Talkative")
    async with kernels_of(server) as start:
        kernel = await start()
        async with await kernel.connect(session_id="ada", framing=framing) as channels:
            assert (await channels.execute("print here")).text == "here\n"
            await eventually(lambda: "ada comes\n" in server.output())
            assert "ada goes\n" not in server.output()
        await eventually(lambda: "ada goes\n" in server.output())
