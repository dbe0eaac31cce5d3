"""Nonsense from a kernel takes no connection down, and the next execution works."""

from __future__ import annotations

import math

import pytest

from tests.support.framing import FramingName
from tests.support.running import KernelStarter, RunningKernel

NONSENSE = [
    "garbage",
    "bad-signature",
    *(f"bad-utf8 {part}" for part in ("header", "parent_header", "metadata", "content")),
    *(f"bad-json {part}" for part in ("header", "parent_header", "metadata", "content")),
    "nan",
    "duplicate twice",
    "status nonsense",
]


async def _both(kernel: RunningKernel, code: str) -> None:
    """Runs code from a client of each framing; all clients see its end."""
    for framing in ("legacy", "v1"):
        channels = await kernel.connect(framing=framing)
        for client in (kernel.channels, channels):
            exchange = await client.execute(f"print before\n{code}\nprint after")
            assert exchange.text.startswith("before\n")
            assert exchange.text.endswith("after\n")
            assert exchange.reply["status"] == "ok"
            assert exchange.states == ["busy", "idle"]
            assert (await client.execute("print next")).text == "next\n"
        await channels.close()


@pytest.mark.parametrize("code", NONSENSE)
async def test_nonsense(start: KernelStarter, code: str) -> None:
    kernel = await start("fake")
    await _both(kernel, code)
    assert (await kernel.model())["execution_state"] == "idle"


async def test_all_nonsense_many_times(start: KernelStarter, framing: FramingName) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(framing=framing)
    for _ in range(20):
        assert (await channels.execute("\n".join(NONSENSE))).reply["status"] == "ok"
    assert (await channels.execute("print alive")).text == "alive\n"


async def test_an_execution_without_a_reply_gets_one(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(framing=framing)
    exchange = await channels.execute("print a\nonly-idle")
    assert exchange.text == "a\n"
    assert exchange.reply == {"status": "aborted"}
    assert exchange.states == ["busy", "idle"]
    assert (await channels.execute("print next")).text == "next\n"


async def test_wrongly_signed_messages_are_shown_to_nobody(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(framing=framing)
    exchange = await channels.execute("bad-signature\nprint honest")
    assert exchange.text == "honest\n"
    assert len(exchange.replies) == 1


async def test_numbers_that_json_has_not_arrive_as_the_kernel_sent_them(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(framing=framing)
    (display,) = (await channels.execute("nan")).of_type("display_data")
    data = display.content["data"]["application/json"]
    assert math.isnan(data["nan"])
    assert data["infinity"] == math.inf


async def test_text_that_is_not_utf8_is_repaired(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(framing=framing)
    assert (await channels.execute("bad-utf8 content")).text == "\N{REPLACEMENT CHARACTER}" * 2


async def test_output_that_is_no_json_is_announced(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(framing=framing)
    exchange = await channels.execute("bad-json content\nprint next")
    assert "not JSON" in exchange.stream("stderr")
    assert exchange.text == "next\n"


async def test_a_kernel_that_signs_with_a_wrong_key_is_never_heard(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake-wrong-key", ready=False)
    channels = await kernel.connect(framing=framing)
    assert (await channels.recv()).state == "starting"
    with pytest.raises(TimeoutError):
        await channels.recv(0.5)
    assert (await kernel.model())["execution_state"] == "starting"


async def test_a_kernel_without_a_welcome_and_without_control_info_works(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake-old")
    channels = await kernel.connect(framing=framing)
    assert (await channels.execute("print a")).text == "a\n"


async def test_what_the_server_asks_for_itself_is_not_shown(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake-slow", ready=False)
    channels = await kernel.connect(framing=framing)
    exchange = await channels.execute("print a")
    foreign = [m for m in channels.log if m.parent_id not in (None, exchange.msg_id)]
    assert foreign == []
    assert {m.msg_type for m in channels.log if m.parent_id is None} == {"status"}
