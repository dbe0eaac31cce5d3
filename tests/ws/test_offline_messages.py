"""``--no-buffer-offline-messages``: who leaves misses what is said meanwhile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import servers
from tests.support.channels import JupyterChannels
from tests.support.framing import FramingName
from tests.support.running import KernelStarter, RunningKernel
from tests.support.server import ServerProcess


@pytest.fixture(scope="module", params=[True, False], ids=["kept", "not kept"])
def kept(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, kept: bool) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server(*([] if kept else ["--no-buffer-offline-messages"]))


async def leave(kernel: RunningKernel, channels: JupyterChannels) -> None:
    await channels.close()
    await kernel.has_connections(1)


async def test_output_that_was_missed(
    start: KernelStarter, framing: FramingName, kept: bool
) -> None:
    kernel = await start()
    leaver = await kernel.connect(session_id="leaves", framing=framing)
    await leaver.execute("print before")
    await leave(kernel, leaver)
    await kernel.channels.execute("print meanwhile")
    back = await kernel.connect(session_id="leaves", framing=framing)
    exchange = await back.execute("print after")
    assert exchange.text == "after\n"
    texts = [m.content["text"] for m in back.log if m.msg_type == "stream"]
    assert texts == (["meanwhile\n", "after\n"] if kept else ["after\n"])


async def test_a_reply_that_was_missed(
    server: ServerProcess, start: KernelStarter, kept: bool
) -> None:
    kernel = await start()
    leaver = await kernel.connect(session_id="leaves")
    request = await leaver.send_execute("until go\nresult r")
    await leaver.seen(lambda m: m.msg_type == "execute_input")
    await leave(kernel, leaver)
    (server.home.root_dir / "go").touch()
    await kernel.channels.seen(lambda m: m.parent_id == request and m.state == "idle")
    # The reply may come after the idle status, but not after that of a later request.
    await kernel.channels.execute("print later")
    back = await kernel.connect(session_id="leaves")
    # Whatever was kept lies before the answer to this.
    await back.execute("print after")
    missed = [m.msg_type for m in back.log if m.parent_id == request]
    assert ("execute_reply" in missed) is ("execute_result" in missed) is kept
