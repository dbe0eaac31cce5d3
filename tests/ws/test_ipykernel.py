"""A real Python kernel through both framings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.channels import JupyterChannels
from tests.support.framing import FramingName
from tests.support.running import KernelStarter, RunningKernel
from tests.support.server import ServerProcess
from tests.support.shared import lasting_kernel

ECHO = """
from comm import create_comm, get_comm_manager
def opened(comm, message):
    def on_message(message):
        comm.send(message["content"]["data"], buffers=message["buffers"])
    comm.on_msg(on_message)
get_comm_manager().register_target("echo", opened)
"""


@pytest.fixture(scope="module")
def shared_kernel(server: ServerProcess) -> Iterator[str]:
    """One ipykernel for the module."""
    with lasting_kernel(server, "python") as kernel_id:
        yield kernel_id


@pytest.fixture
async def client(kernel: RunningKernel, framing: FramingName) -> JupyterChannels:
    return await kernel.connect(framing=framing)


async def test_output_in_order(client: JupyterChannels) -> None:
    code = "import sys\nprint('out')\nprint('err', file=sys.stderr)\ndisplay({'a': 1})\n6 * 7"
    exchange = await client.execute(code)
    assert (exchange.text, exchange.stream("stderr"), exchange.result) == ("out\n", "err\n", "42")
    assert exchange.states == ["busy", "idle"]
    assert exchange.reply["status"] == "ok"
    assert len(exchange.of_type("display_data")) == 1


async def test_an_error(client: JupyterChannels) -> None:
    exchange = await client.execute("1 / 0")
    assert exchange.error["ename"] == "ZeroDivisionError"
    assert exchange.reply["status"] == "error"
    assert (await client.execute("1 + 1")).result == "2"


async def test_input(client: JupyterChannels) -> None:
    exchange = await client.execute("print(input('name? '), end='')", answers=["Ada é"])
    assert exchange.of_type("input_request")[0].content["prompt"] == "name? "
    assert exchange.text == "Ada é"


async def test_comms_carry_buffers_both_ways(client: JupyterChannels) -> None:
    await client.execute(ECHO)
    opened = {"comm_id": f"comm-{client.session}", "target_name": "echo", "data": {}}
    await client.request("comm_open", opened, replies=False)
    buffers = [b"", bytes(range(256)) * 500]
    content = {"comm_id": opened["comm_id"], "data": {"n": 1}}
    exchange = await client.request("comm_msg", content, buffers=buffers, replies=False)
    (echo,) = exchange.of_type("comm_msg")
    assert echo.content["data"] == {"n": 1}
    assert echo.buffers == buffers


async def test_requests_of_every_kind(client: JupyterChannels) -> None:
    # Jedi takes its time to start, and is not the point here.
    await client.execute("get_ipython().Completer.use_jedi = False; some_name = 1")
    complete = await client.request("complete_request", {"code": "some_na", "cursor_pos": 7})
    assert complete.reply["matches"] == ["some_name"]
    inspect = {"code": "some_name", "cursor_pos": 3, "detail_level": 0}
    assert (await client.request("inspect_request", inspect)).reply["found"]
    is_complete = await client.request("is_complete_request", {"code": "for a in b:"})
    assert is_complete.reply["status"] == "incomplete"
    info = (await client.request("kernel_info_request")).reply
    assert info["implementation"] == "ipython"


async def test_a_busy_kernel_answers_info_and_control(
    kernel: RunningKernel, client: JupyterChannels
) -> None:
    running = await kernel.busy("import time\nprint('begun', flush=True)\ntime.sleep(60)")
    await kernel.channels.seen(lambda m: m.content.get("text") == "begun\n")
    info = await client.request("kernel_info_request")
    assert (info.states, info.reply["implementation"]) == (["busy", "idle"], "ipython")
    control = await client.request("kernel_info_request", channel="control")
    assert [reply.channel for reply in control.replies] == ["control"]
    assert (await kernel.model())["execution_state"] == "busy"
    await kernel.rest.interrupt(kernel.id)
    exchange = await kernel.channels.exchange(running)
    assert exchange.error["ename"] == "KeyboardInterrupt"


async def test_a_restart_forgets_everything_but_the_clients(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("python")
    client = await kernel.connect(framing=framing)
    await client.execute("name = 1")
    await kernel.rest.restart(kernel.id)
    exchange = await client.execute("name")
    assert exchange.error["ename"] == "NameError"
    assert (await client.execute("1 + 1")).result == "2"


async def test_code_that_is_sent_at_once_after_an_error_runs(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("python3")
    channels = await kernel.connect(framing=framing)
    for _ in range(20):
        await channels.send_execute("1/0")
        await channels.collect_until(lambda m: m.msg_type == "error")
        assert (await channels.execute("print('next')")).text == "next\n"


@pytest.mark.parametrize("how", ["rest", "websocket"])
async def test_code_that_is_sent_at_once_after_an_interrupt_runs(
    start: KernelStarter, how: str
) -> None:
    kernel = await start("python3")
    # A signal that comes just before one long sleep would show after that only.
    code = "import time; print('begun', flush=True)\nfor _ in range(10_000): time.sleep(0.01)"
    for _ in range(10):
        await kernel.begins(code)
        if how == "rest":
            await kernel.rest.interrupt(kernel.id)
        else:
            await kernel.channels.send("interrupt_request", {}, channel="control")
        assert (await kernel.channels.execute("print('next')")).text == "next\n"


async def test_code_that_was_sent_before_an_error_is_aborted(start: KernelStarter) -> None:
    kernel = await start("python3")
    await kernel.channels.send_execute("import time; time.sleep(0.5); 1/0")
    exchange = await kernel.channels.execute("print('next')")
    assert (exchange.reply["status"], exchange.text) == ("aborted", "")
    assert (await kernel.channels.execute("print('later')")).text == "later\n"
