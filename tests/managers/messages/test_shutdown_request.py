"""A client ends or restarts the kernel itself, with a ``shutdown_request``."""

from __future__ import annotations

import pytest

from tests.conftest import MakeServer
from tests.support.framing import FramingName
from tests.support.processes import children, eventually
from tests.support.rest import RestError
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess


@pytest.mark.parametrize("channel", ["control", "shell"])
async def test_a_kernel_that_a_client_shuts_down_is_gone(
    server: ServerProcess, start: KernelStarter, channel: str, framing: FramingName
) -> None:
    kernel = await start()
    asking, other = await kernel.connect(framing=framing), kernel.channels
    exchange = await asking.request("shutdown_request", {"restart": False}, channel)
    assert exchange.reply["status"] == "ok"
    for channels in (asking, other):
        assert (await channels.closed()).code == 4404
        states = [m.state for m in channels.log if m.state and not m.parent_header]
        assert states[-1] == "dead"
        assert "restarting" not in states
    with pytest.raises(RestError) as raised:
        await kernel.model()
    assert raised.value.status == 404
    assert await kernel.rest.kernels() == []
    assert server.home.leftovers() == []
    await eventually(lambda: not children(server.pid))


@pytest.mark.parametrize("name", ["fake", "python3"])
async def test_one_that_a_client_restarts_comes_back_for_everybody(
    start: KernelStarter, name: str
) -> None:
    kernel = await start(name)
    asking, other = kernel.channels, await kernel.connect()
    execute = {"fake": "print {}", "python3": "print({!r})"}[name].format
    assert (await asking.execute(execute("before"))).reply["execution_count"] == 1
    exchange = await asking.request("shutdown_request", {"restart": True}, "control")
    assert exchange.reply["restart"] is True
    for channels in (asking, other):
        await kernel.told("idle", channels=channels)
    for channels in (asking, other):
        assert (await channels.execute(execute("here"))).text == "here\n"
    model = await kernel.model()
    assert model["execution_state"] == "idle"
    assert model["connections"] == 2
    counts = [m.content["execution_count"] for m in other.log if m.msg_type == "execute_input"]
    assert counts == [1, 1, 2]


async def test_restarts_by_a_client_are_no_deaths(make_server: MakeServer) -> None:
    """They have no limit, do not wait longer each time, and are told as what they are."""
    server = make_server("--restart-limit", "1")
    async with kernels_of(server) as start:
        kernel = await start()
        for _ in range(4):
            await kernel.channels.request("shutdown_request", {"restart": True}, "control")
            told = await kernel.told("idle", timeout=10)
            states = [m.state for m in told]
            assert "dead" not in states
            assert "restarting" not in states  # JupyterLab: "appears to have died"
            assert "reason" not in await kernel.model()


async def test_one_that_ignores_the_request_lives_on(start: KernelStarter) -> None:
    kernel = await start("fake-no-shutdown")
    pid = await kernel.pid()
    await kernel.channels.request("shutdown_request", {"restart": False}, "control", replies=False)
    assert await kernel.pid() == pid
    assert (await kernel.model())["execution_state"] == "idle"


async def test_what_waits_when_a_client_shuts_it_down_ends(start: KernelStarter) -> None:
    kernel = await start()
    running = await kernel.busy("sleep 100")
    waiting = await kernel.channels.send_execute("print never")
    other = await kernel.connect()
    await other.send("shutdown_request", {"restart": False}, "control")
    for request in (running, waiting):
        exchange = await kernel.channels.exchange(request)
        assert exchange.reply["status"] == "aborted"
        assert exchange.states[-1] == "idle"
    assert (await kernel.channels.closed()).code == 4404


async def test_a_request_that_is_malformed_ends_nothing_by_itself(start: KernelStarter) -> None:
    """What counts is whether the process ends; a death that nobody asked for is restarted."""
    kernel = await start("fake-no-shutdown")
    await kernel.channels.send("shutdown_request", {"restart": "no"}, "control")
    assert (await kernel.channels.execute("print here")).text == "here\n"
    await kernel.channels.execute("die 1")
    await kernel.told("idle")
    assert (await kernel.channels.execute("print here")).text == "here\n"
