"""``--allowed-message-types``: what is not in the list is ignored, on every channel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import MakeServer, servers
from tests.support.channels import JupyterChannels
from tests.support.framing import FramingName
from tests.support.processes import eventually
from tests.support.running import KernelStarter, RunningKernel, kernels_of
from tests.support.server import ServerProcess

ALLOWED = "execute_request,kernel_info_request"


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server("--allowed-message-types", ALLOWED)


async def everything_before_is_handled(channels: JupyterChannels) -> None:
    """The kernel has got all that was sent so far, and answered what it could."""
    for channel in ("shell", "control"):
        await channels.request("kernel_info_request", channel=channel)


def answers(channels: JupyterChannels, msg_id: str) -> list[str]:
    return [message.msg_type for message in channels.log if message.parent_id == msg_id]


async def test_what_is_in_the_list_works(kernel: RunningKernel, framing: FramingName) -> None:
    channels = await kernel.connect(framing=framing)
    assert (await channels.execute("result 42")).result == "42"
    for channel in ("shell", "control"):
        exchange = await channels.request("kernel_info_request", channel=channel)
        assert exchange.reply["implementation"] == "fake"


@pytest.mark.parametrize(
    ("channel", "msg_type"),
    [
        ("shell", "complete_request"),
        ("shell", "comm_open"),
        ("shell", "history_request"),
        ("shell", "EXECUTE_REQUEST"),
        ("shell", "execute_request "),
        ("control", "shutdown_request"),
        ("control", "debug_request"),
        ("stdin", "input_reply"),
    ],
)
async def test_anything_else_is_ignored_logged_and_harmless(
    server: ServerProcess,
    kernel: RunningKernel,
    framing: FramingName,
    channel: str,
    msg_type: str,
) -> None:
    channels = await kernel.connect(framing=framing)
    mark = server.mark()
    content = {"code": "", "cursor_pos": 0, "comm_id": "c", "target_name": "t", "value": "v"}
    msg_id = await channels.send(msg_type, content, channel)
    await everything_before_is_handled(channels)
    assert answers(channels, msg_id) == []
    assert (await channels.execute("print here")).text == "here\n"

    async def said() -> list[str]:
        # One line a second at most: sent once more, it is told when another has just been.
        await channels.send(msg_type, content, channel)
        await everything_before_is_handled(channels)
        return [line for line in server.output(mark).splitlines() if "not allowed" in line]

    line = (await eventually(said, 30, 0.3))[0]
    assert kernel.id in line
    assert repr(msg_type) in line


async def test_an_interrupt_by_message_is_ignored_too_and_by_rest_it_is_not(
    start: KernelStarter,
) -> None:
    kernel = await start()
    running = await kernel.busy("sleep 600")
    await kernel.channels.send("interrupt_request", channel="control")
    await kernel.channels.request("kernel_info_request", channel="control")
    assert (await kernel.model())["execution_state"] == "busy"
    await kernel.rest.interrupt(kernel.id)
    exchange = await kernel.channels.exchange(running)
    assert exchange.error["ename"] == "KeyboardInterrupt"


async def test_an_answer_to_a_question_is_ignored_unless_it_is_in_the_list(
    make_server: MakeServer, start: KernelStarter
) -> None:
    kernel = await start()
    asking = await kernel.channels.send_execute("input name?", allow_stdin=True)
    question = await kernel.channels.seen(lambda m: m.msg_type == "input_request")
    await kernel.channels.answer(question, "Ada")
    await kernel.channels.request("kernel_info_request", channel="control")
    assert (await kernel.model())["execution_state"] == "busy"
    await kernel.rest.interrupt(kernel.id)
    assert (await kernel.channels.exchange(asking)).text == ""
    other = make_server("--allowed-message-types", f"{ALLOWED},input_reply")
    async with kernels_of(other) as start_other:
        kernel = await start_other()
        exchange = await kernel.channels.execute("input name?", answers=["Ada"])
        assert exchange.text == "Ada\n"


async def test_an_empty_list_allows_everything(make_server: MakeServer) -> None:
    server = make_server("--allowed-message-types", "")
    async with kernels_of(server) as start:
        kernel = await start()
        content = {"code": "pri", "cursor_pos": 3}
        exchange = await kernel.channels.request("complete_request", content)
        assert exchange.reply["matches"] == ["print"]
