"""The limits on output, as clients of a real server see them.

The window is so long that nothing leaves it during a test: which messages are held back does not
depend on how fast the machine is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.conftest import MakeServer, servers
from tests.support.channels import Exchange
from tests.support.framing import FramingName, Message
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess

WINDOW = ("--rate-limit-window", "600")
ALLOWED = 300  # messages within the window, at one in two seconds
LIMITS = ("--iopub-msg-rate-limit", "0.5", "--iopub-data-rate-limit", "0", *WINDOW)

BURST = "display 400 20\nresult the end"
HELD = 100  # messages of that


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server(*LIMITS)


def notices(exchange: Exchange) -> list[str]:
    """What the server itself wrote on stderr."""
    streams = [m.content for m in exchange.of_type("stream") if m.content["name"] == "stderr"]
    return [content["text"] for content in streams]


def count_told(notice: str) -> int:
    """The number of messages that a notice says were held back."""
    match = re.fullmatch(
        r"kernelkeep: (\d+) messages \((\d+) bytes\) of output were held back\.\n", notice
    )
    assert match, notice
    assert int(match[2]) > int(match[1])
    return int(match[1])


def numbers(messages: list[Message]) -> list[int]:
    return [int(m.content["data"]["text/plain"].split()[0]) for m in messages]


async def test_of_a_burst_the_result_the_reply_and_the_status_arrive_and_the_rest_is_counted(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start()
    channels = await kernel.connect(framing=framing)
    exchange = await channels.execute("display 4000 20\nresult the end", timeout=100)
    assert exchange.reply["status"] == "ok"
    assert exchange.result == "the end"
    assert exchange.states == ["busy", "idle"]
    assert len(exchange.of_type("execute_input")) == 1
    assert numbers(exchange.of_type("display_data")) == list(range(1, ALLOWED + 1))
    exceeded, count = notices(exchange)
    assert exceeded.split("\n")[0] == "IOPub message rate exceeded."
    assert "--iopub-msg-rate-limit" in exceeded
    assert "iopub_msg_rate_limit=0.5 (msgs/sec)" in exceeded
    assert "rate_limit_window=600.0 (secs)" in exceeded
    assert count_told(count) == 4000 - ALLOWED


async def test_each_execution_begins_anew(start: KernelStarter) -> None:
    kernel = await start()
    for _ in range(2):
        exchange = await kernel.channels.execute(BURST)
        assert len(exchange.of_type("display_data")) == ALLOWED
        assert count_told(notices(exchange)[1]) == HELD


async def test_each_connection_has_a_limit_of_its_own(start: KernelStarter) -> None:
    kernel = await start()
    second = await kernel.connect(framing="v1")
    request = await kernel.channels.send_execute(BURST)
    first_saw = await kernel.channels.exchange(request)
    second_saw = await second.exchange(request, replies=False)
    for exchange in (first_saw, second_saw):
        assert len(exchange.of_type("display_data")) == ALLOWED
        assert count_told(notices(exchange)[1]) == HELD


async def test_results_errors_and_comms_are_never_held_back(start: KernelStarter) -> None:
    kernel = await start()
    # The limit is in force from the first of them on.
    lines = [f"display {ALLOWED + 1} 20", *(f"result {n}\ncomm {n}" for n in range(100))]
    exchange = await kernel.channels.execute("\n".join([*lines, "error TheEnd of it"]))
    assert notices(exchange)[0].startswith("IOPub message rate exceeded.")
    results = [m.content["data"]["text/plain"] for m in exchange.of_type("execute_result")]
    assert results == [str(n) for n in range(100)]
    assert [m.content["target_name"] for m in exchange.of_type("comm_open")] == results
    assert exchange.error["ename"] == "TheEnd"
    assert exchange.reply["ename"] == "TheEnd"
    assert count_told(notices(exchange)[1]) == 1


async def test_what_a_returning_client_has_missed_is_not_limited(start: KernelStarter) -> None:
    kernel = await start()
    async with await kernel.connect(session_id="leaves") as leaver:
        await leaver.request("kernel_info_request")
    await kernel.has_connections(1)
    exchange = await kernel.channels.execute(BURST)
    assert len(exchange.of_type("display_data")) == ALLOWED
    async with await kernel.connect(session_id="leaves") as returned:
        missed = await returned.exchange(exchange.msg_id, replies=False)
        assert numbers(missed.of_type("display_data")) == list(range(1, 401))
        assert notices(missed) == []
        # What it then sees live, is.
        live = await returned.execute(BURST)
        assert len(live.of_type("display_data")) == ALLOWED


async def test_bytes_of_streams_are_limited_and_those_of_displays_are_not(
    make_server: MakeServer,
) -> None:
    server = make_server("--iopub-data-rate-limit", "1000", "--iopub-msg-rate-limit", "0", *WINDOW)
    async with kernels_of(server) as start:
        kernel = await start()
        exchange = await kernel.channels.execute("flood 100 10000\nresult the end")
        texts = [m.content["text"] for m in exchange.of_type("stream")]
        shown = [int(text.split()[0]) for text in texts if text.endswith("x\n")]
        # 600 kB, of which each message takes 10 kB and what it travels in.
        assert shown == list(range(1, len(shown) + 1))
        assert 50 <= len(shown) < 60
        exceeded, count = notices(exchange)
        assert exceeded.split("\n")[0] == "IOPub data rate exceeded."
        assert "--iopub-data-rate-limit" in exceeded
        assert "iopub_data_rate_limit=1000.0 (bytes/sec)" in exceeded
        assert count_told(count) == 100 - len(shown)
        assert exchange.result == "the end"
        exchange = await kernel.channels.execute("display 100 10000")
        assert numbers(exchange.of_type("display_data")) == list(range(1, 101))
        assert notices(exchange) == []


@pytest.mark.parametrize(
    "options",
    [
        ("--no-limit-rate", *LIMITS),
        ("--iopub-msg-rate-limit", "0", "--iopub-data-rate-limit", "0", *WINDOW),
        ("--iopub-msg-rate-limit=-1", "--iopub-data-rate-limit=-1", *WINDOW),
    ],
    ids=["off", "0", "-1"],
)
async def test_without_limits_all_arrives(make_server: MakeServer, options: list[str]) -> None:
    server = make_server(*options)
    async with kernels_of(server) as start:
        kernel = await start()
        exchange = await kernel.channels.execute("display 400 20\nflood 100 100000")
        assert numbers(exchange.of_type("display_data")) == list(range(1, 401))
        assert len(exchange.of_type("stream")) == 100
        assert notices(exchange) == []


async def test_a_limit_ends_when_the_output_has_become_slow(make_server: MakeServer) -> None:
    """In the middle of an execution: the count is told, and output goes on."""
    server = make_server("--iopub-msg-rate-limit", "10", "--rate-limit-window", "0.5")
    async with kernels_of(server) as start:
        kernel = await start()
        exchange = await kernel.channels.execute("display 300 20\nsleep 1\ndisplay 1 20")
        texts = notices(exchange)
        held = sum(count_told(text) for text in texts if text.startswith("kernelkeep"))
        shown = numbers(exchange.of_type("display_data"))
        assert len(shown) + held == 301
        assert held > 0
        # The last one came, and the count before it.
        assert shown[-1] == 1
        last_display = exchange.messages.index(exchange.of_type("display_data")[-1])
        last_notice = max(
            index for index, message in enumerate(exchange.messages) if message.msg_type == "stream"
        )
        assert last_notice < last_display
