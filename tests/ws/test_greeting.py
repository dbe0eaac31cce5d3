"""A client that connects is told the kernel's state at once, before anything else.

These are the tests of `app.managers.messages.voice`.
"""

from __future__ import annotations

import asyncio
import re

import pytest

from tests.support.channels import JupyterChannels
from tests.support.framing import FramingName, Message
from tests.support.kernelspecs import shell_spec, write_kernelspec
from tests.support.running import KernelStarter, RunningKernel
from tests.support.server import ServerProcess

AT_ONCE = 5  # seconds, for a loaded machine; a kernel's start or sleep takes longer in these tests


async def _greeting(channels: JupyterChannels) -> Message:
    greeting = await channels.recv(AT_ONCE)
    assert (greeting.channel, greeting.msg_type) == ("iopub", "status")
    assert (greeting.parent_header, greeting.buffers) == ({}, [])
    assert list(greeting.content) == ["execution_state"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", greeting.header["date"])
    assert set(greeting.header) >= {"msg_id", "msg_type", "session", "username", "version"}
    return greeting


async def test_of_an_idle_kernel(kernel: RunningKernel, framing: FramingName) -> None:
    channels = await kernel.connect(framing=framing)
    assert (await _greeting(channels)).state == "idle"
    # And nothing else: no messages of the server's own questions.
    assert (await channels.execute("print a")).states == ["busy", "idle"]
    assert {message.parent_id for message in list(channels.log)[1:]} == {channels.log[-1].parent_id}


async def test_of_a_busy_kernel(start: KernelStarter, framing: FramingName) -> None:
    kernel = await start("fake")
    running = await kernel.busy("sleep 60")
    channels = await kernel.connect(framing=framing)
    assert (await _greeting(channels)).state == "busy"
    await kernel.rest.interrupt(kernel.id)
    await channels.seen(lambda m: m.parent_id == running and m.state == "idle")
    another = await kernel.connect(framing=framing)
    assert (await _greeting(another)).state == "idle"


async def test_of_a_kernel_that_does_not_answer(start: KernelStarter, framing: FramingName) -> None:
    kernel = await start("fake")
    await kernel.busy("print begun\nhang 60")
    channels = await kernel.connect(framing=framing)
    assert (await _greeting(channels)).state == "busy"


async def test_of_a_kernel_that_starts(
    server: ServerProcess, start: KernelStarter, framing: FramingName
) -> None:
    spec = shell_spec("while [ ! -e go ]; do sleep 0.05; done; exec $FAKE")
    write_kernelspec(server.home.jupyter_path, "gated", spec)
    folder = server.home.root_dir / f"gated-{framing}"
    folder.mkdir()
    kernel = await start("gated", ready=False, path=folder.name)
    channels = await kernel.connect(framing=framing)
    assert (await _greeting(channels)).state == "starting"
    # What is sent before it is ready waits for it.
    early = [await channels.send_execute(f"print {number}") for number in range(3)]
    info = await channels.send("kernel_info_request")
    assert (await kernel.model())["execution_state"] == "starting"
    (folder / "go").touch()
    assert [(await channels.exchange(msg_id)).text for msg_id in early] == ["0\n", "1\n", "2\n"]
    assert (await channels.exchange(info)).reply["implementation"] == "fake"
    told = [message.state for message in channels.log if message.state and not message.parent_id]
    assert told[0] == "starting"
    assert told[-1] == "idle"
    assert set(told) == {"starting", "idle"}


async def test_of_a_dead_kernel(start: KernelStarter, framing: FramingName) -> None:
    kernel = await start("fake-exit", ready=False)
    await kernel.becomes("dead")
    channels = await kernel.connect(framing=framing)
    assert (await _greeting(channels)).state == "dead"
    # It answers nothing any more, and says so.
    exchange = await channels.execute("print a")
    assert exchange.reply["status"] == "aborted"
    assert exchange.states == ["idle"]
    assert exchange.outputs == []
    # It can be restarted, so the connection is not ended.
    with pytest.raises(TimeoutError):
        await channels.recv(0.3)


async def test_of_a_kernel_that_restarts(start: KernelStarter, framing: FramingName) -> None:
    kernel = await start("fake-slow")
    restart = asyncio.create_task(kernel.rest.restart(kernel.id))
    await kernel.becomes("restarting", "starting")
    channels = await kernel.connect(framing=framing)
    # Not "restarting", at which JupyterLab would connect anew, again and again.
    assert (await _greeting(channels)).state == "starting"
    await restart
    await kernel.becomes("idle")
    assert (await channels.execute("print a")).text == "a\n"


async def test_connections_are_counted(kernel: RunningKernel, framing: FramingName) -> None:
    await kernel.channels.close()
    await kernel.has_connections(0)
    clients = [await kernel.connect(framing=framing) for _ in range(3)]
    await kernel.has_connections(3)
    await clients[0].close()
    await kernel.has_connections(2)
    clients[1].websocket.transport.abort()  # as when a machine is switched off
    await kernel.has_connections(1)
    await clients[2].send_frame(b"\xff")
    await kernel.has_connections(0)
