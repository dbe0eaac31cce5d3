"""What the fake kernel is told to do by the code that it executes."""

from __future__ import annotations

import json
import os
import signal
import time

import psutil
import pytest

from tests.kernels import fake
from tests.kernels.driver import (
    Kernel,
)
from tests.support.processes import eventually, is_alive


@pytest.mark.parametrize(("count", "size"), [(2000, 100), (50, 100_000), (3, 1)])
async def test_flood_is_complete_and_in_order(kernel: Kernel, count: int, size: int) -> None:
    exchange = await kernel.run(f"flood {count} {size}")
    texts = [message.content["text"] for message in exchange.of_type("stream")]
    assert [int(text.split()[0]) for text in texts] == list(range(1, count + 1))
    assert all(len(text) >= size and text.endswith("\n") for text in texts)
    if size >= 10:
        assert {len(text) for text in texts} == {size}


async def test_flood_at_a_rate(kernel: Kernel) -> None:
    start = time.monotonic()
    await kernel.run("flood 100 50 200")
    assert 0.45 < time.monotonic() - start < 5


async def test_flood_leaves_control_and_interrupt(kernel: Kernel) -> None:
    running = kernel.start("flood 1000000000 1000")
    await kernel.running()
    start = time.monotonic()
    await kernel.reply(kernel.send("kernel_info_request"), "control")
    await kernel.reply(kernel.send("interrupt_request"), "control")
    assert (await kernel.reply(running)).content["ename"] == "KeyboardInterrupt"
    assert time.monotonic() - start < 5


async def test_display_buffers_and_huge(kernel: Kernel) -> None:
    exchange = await kernel.run("display 3 20", "buffers 2 5", "huge 3000000")
    *displays, with_buffers, huge = exchange.outputs
    texts = [message.content["data"]["text/plain"] for message in displays]
    assert texts == [f"{number} " + "x" * 17 + "\n" for number in (1, 2, 3)]
    assert with_buffers.msg_type == "display_data"
    assert with_buffers.buffers == [b"\x00" * 5, b"\x01" * 5]
    assert len(huge.content["text"]) == 3_000_000


async def test_anything_is_published(kernel: Kernel) -> None:
    content = {"data": {"text/html": "<p class='it''s'>\n\"</p>"}, "metadata": {}}
    exchange = await kernel.run(f"publish 2 display_data {json.dumps(content)}", "print behind")
    *displays, behind = exchange.outputs
    assert [(each.msg_type, each.content) for each in displays] == [("display_data", content)] * 2
    assert behind.content["text"] == "behind\n"


async def test_environment_directory_and_pid(kernel: Kernel) -> None:
    lines = (await kernel.run("env", "cwd", "pid", "env PATH")).text.splitlines()
    environment = json.loads(lines[0])
    assert lines[1:] == [os.getcwd(), str(kernel.process.pid), environment["PATH"]]


async def test_status_without_a_parent(kernel: Kernel) -> None:
    await kernel.run("status odd")
    (odd,) = [message for message in kernel.log if message.state == "odd"]
    assert odd.parent_header == {}


async def test_background_goes_on_after_idle(kernel: Kernel) -> None:
    exchange = await kernel.run("background 3 0.1", "print foreground")
    assert exchange.text == "foreground\n"
    await kernel.until("iopub", lambda m: m.content.get("text") == "background 3\n")
    texts = kernel.so_far(exchange.msg_id).text
    assert texts == "foreground\nbackground 1\nbackground 2\nbackground 3\n"


async def test_reply_before_the_rest(kernel: Kernel) -> None:
    running = kernel.start("reply", "sleep 0.5", "print later")
    assert (await kernel.reply(running)).content["status"] == "ok"
    exchange = await kernel.exchange(running)
    assert len(exchange.replies) == 1
    assert exchange.text == "later\n"


async def test_no_reply_and_no_idle(kernel: Kernel) -> None:
    unanswered = kernel.start("no-reply", "print a")
    unfinished = kernel.start("no-idle", "print b")
    assert (await kernel.run("print c")).text == "c\n"
    assert kernel.so_far(unanswered).states == ["busy"]
    assert kernel.so_far(unanswered).replies == []
    assert kernel.so_far(unanswered).text == "a\n"
    assert kernel.so_far(unfinished).states == ["busy"]
    assert kernel.so_far(unfinished).reply["status"] == "ok"
    unanswered = kernel.start("only-idle", "print d")
    assert (await kernel.run("print e")).text == "e\n"
    assert kernel.so_far(unanswered).states == ["busy", "idle"]
    assert kernel.so_far(unanswered).replies == []


async def test_raw_output_is_the_process_s(kernel: Kernel) -> None:
    assert (await kernel.run("raw some words")).outputs == []
    kernel.start("die 3")
    assert await kernel.ended() == (3, "some words\n")


async def test_die_flushes_what_was_sent(kernel: Kernel) -> None:
    running = kernel.start("flood 1000 1000", "print last", "die 42")
    await kernel.until("iopub", lambda m: m.content.get("text") == "last\n")
    assert len(kernel.so_far(running).of_type("stream")) == 1001
    assert (await kernel.ended())[0] == 42


@pytest.mark.parametrize("name", ["SIGKILL", "SEGV", "sigabrt", "TERM"])
async def test_kill(kernel: Kernel, name: str) -> None:
    kernel.start(f"kill {name}")
    code, _ = await kernel.ended()
    assert -code == getattr(signal, "SIG" + name.upper().removeprefix("SIG"))


async def test_hang_answers_nothing(kernel: Kernel) -> None:
    running = kernel.start("hang")
    await kernel.running()
    kernel.process.send_signal(signal.SIGINT)
    kernel.send("kernel_info_request")
    assert await kernel.is_silent("control")
    assert is_alive(kernel.process.pid)
    kernel.process.terminate()
    assert (await kernel.ended())[0] == -signal.SIGTERM
    assert kernel.so_far(running).replies == []


async def test_hang_for_a_time(kernel: Kernel) -> None:
    running = kernel.start("hang 0.7", "print awake")
    await kernel.running()
    kernel.process.send_signal(signal.SIGINT)
    start = time.monotonic()
    await kernel.reply(kernel.send("kernel_info_request"), "control")
    assert time.monotonic() - start > 0.3
    assert (await kernel.exchange(running)).text == "awake\n"
    running = kernel.start("sleep 60")
    await kernel.running()
    kernel.process.send_signal(signal.SIGINT)
    assert (await kernel.reply(running)).content["ename"] == "KeyboardInterrupt"


async def test_stopped_process(kernel: Kernel) -> None:
    kernel.start("sleep 0.3", "kill STOP")
    await kernel.running()
    await eventually(lambda: psutil.Process(kernel.process.pid).status() == "stopped")
    kernel.send("kernel_info_request")
    assert await kernel.is_silent("control")
    kernel.process.send_signal(signal.SIGCONT)
    await kernel.receive("control")


# -- wire faults, seen as raw frames


async def test_garbage(kernel: Kernel) -> None:
    kernel.start("garbage")
    busy, echo, *garbage, idle = await kernel.frames("iopub", 8)
    assert all(kernel.is_signed(frames) for frames in (busy, echo, idle))
    assert [b""] in garbage
    *replies, reply = await kernel.frames("shell", 6)
    assert [frames[-1] for frames in replies] == [frames[-1] for frames in garbage]
    assert kernel.is_signed(reply)


async def test_bad_signature(kernel: Kernel) -> None:
    kernel.start("bad-signature")
    signed = [kernel.is_signed(frames) for frames in await kernel.frames("iopub", 4)]
    assert signed == [True, True, False, True]
    signed = [kernel.is_signed(frames) for frames in await kernel.frames("shell", 2)]
    assert signed == [False, True]


@pytest.mark.parametrize("part", fake.PARTS)
@pytest.mark.parametrize("command", ["bad-utf8", "bad-json"])
async def test_undecodable_part(kernel: Kernel, command: str, part: str) -> None:
    kernel.start(f"{command} {part}")
    _, _, frames, _ = await kernel.frames("iopub", 4)
    assert kernel.is_signed(frames)
    parts = frames[frames.index(fake.DELIMITER) + 2 :]
    for name, data in zip(fake.PARTS, parts, strict=True):
        error = UnicodeDecodeError if command == "bad-utf8" else json.JSONDecodeError
        if name == part:
            with pytest.raises(error):
                json.loads(data.decode())
        else:
            json.loads(data)


async def test_nan(kernel: Kernel) -> None:
    kernel.start("nan")
    _, _, frames, _ = await kernel.frames("iopub", 4)
    assert b'{"nan": NaN, "infinity": Infinity}' in frames[-1]


async def test_duplicate(kernel: Kernel) -> None:
    kernel.start("duplicate twice")
    _, _, first, second, _ = await kernel.frames("iopub", 5)
    assert first == second
    assert kernel.is_signed(first)
