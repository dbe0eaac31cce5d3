"""A kernel's process dies by itself: what its clients are told, and how it comes back.

These are the tests of `app.managers.kernels.life`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from datetime import UTC, datetime

import pytest

from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.framing import FRAMINGS, FramingName, Message
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.processes import children, eventually, is_alive
from tests.support.running import KernelStarter, RunningKernel, kernels_of
from tests.support.server import ServerProcess


def states(messages: list[Message]) -> list[str]:
    """The states told of no request in particular."""
    return [m.state for m in messages if m.state is not None and not m.parent_header]


async def test_clients_get_what_was_said_then_the_error_then_the_ends_then_the_restart(
    start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start()
    pid = await kernel.pid()
    channels = await kernel.connect(framing=framing)
    running = await channels.send_execute("print before\nsleep 60")
    waiting = await channels.send_execute("print never")
    await channels.collect_until(lambda m: m.msg_type == "stream")
    os.kill(pid, signal.SIGKILL)
    messages = await channels.collect_until(lambda m: m.state == "idle" and not m.parent_header)
    told = [
        (m.parent_id, m.state or m.msg_type)
        for m in messages
        if m.parent_id in (running, waiting) or not m.parent_header
    ]
    # A kernel says "starting" of itself where it likes.
    assert [tell for tell in told if tell != (None, "starting")] == [
        (running, "error"),
        (running, "execute_reply"),
        (running, "idle"),
        (waiting, "execute_reply"),
        (waiting, "idle"),
        (None, "restarting"),
        (None, "idle"),
    ]
    (error,) = [m for m in messages if m.msg_type == "error"]
    assert error.content["ename"] == "KernelDied"
    assert "SIGKILL" in error.content["evalue"]
    assert "SIGKILL" in "".join(error.content["traceback"])
    replies = [m for m in messages if m.msg_type == "execute_reply"]
    assert {(m.content["status"], m.channel) for m in replies} == {("aborted", "shell")}


async def test_every_request_of_every_client_ends_and_each_gets_its_own_replies(
    start: KernelStarter,
) -> None:
    kernel = await start()
    pid = await kernel.pid()
    first, second = kernel.channels, await kernel.connect()
    await kernel.busy("hang")
    ours = [
        await first.send_execute("print never"),
        await first.send("complete_request", {"code": "pri", "cursor_pos": 3}),
    ]
    theirs = [
        await second.send_execute("print never"),
        await second.send("inspect_request", {"code": "x", "cursor_pos": 1, "detail_level": 0}),
        await second.send("debug_request", {"type": "request", "seq": 1}, "control"),
    ]
    # The server has them all when it has answered what was sent last.
    for channels in (first, second):
        await channels.request("kernel_info_request")
    os.kill(pid, signal.SIGKILL)
    for channels, requests in ((first, ours), (second, theirs)):
        for request in requests:
            exchange = await channels.exchange(request)
            assert exchange.reply["status"] == "aborted"
            assert exchange.states == ["idle"]
        replies = [m for m in channels.log if m.msg_type.endswith("_reply")]
        assert {m.parent_header["session"] for m in replies} == {channels.session}
        assert any(m.msg_type == "error" for m in channels.log)
    debug = [m for m in second.log if m.msg_type == "debug_reply"]
    assert [m.channel for m in debug] == ["control"]


async def test_after_the_restart_the_same_connections_go_on(start: KernelStarter) -> None:
    kernel = await start()
    first, second = kernel.channels, await kernel.connect()
    pid = await kernel.pid()
    os.kill(pid, signal.SIGKILL)
    for channels in (first, second):
        await channels.collect_until(lambda m: m.state == "restarting")
        await channels.collect_until(lambda m: m.state == "idle" and not m.parent_header)
        exchange = await channels.execute("print here")
        assert exchange.text == "here\n"
        assert exchange.states == ["busy", "idle"]
    assert await kernel.pid() != pid
    assert (await first.execute("print x")).reply["execution_count"] == 4  # it counts anew


async def test_restarts_are_told_as_past(start: KernelStarter) -> None:
    kernel = await start()
    never_died = await kernel.model()
    assert "restarts" not in never_died
    assert "reason" not in never_died
    before = datetime.now(UTC)
    for count, end in enumerate(("die 3", "kill SIGSEGV"), 1):
        await kernel.channels.execute(end)
        await kernel.told("restarting")
        await kernel.told("idle")
        model = await kernel.model()
        assert [*model] == [*never_died, "restarts"]
        restarts = model["restarts"]
        assert [*restarts] == ["count", "last", "reason"]
        assert restarts["count"] == count
        assert before <= datetime.fromisoformat(restarts["last"]) <= datetime.now(UTC)
    assert restarts["reason"] == "The kernel's process was killed by signal 11 (SIGSEGV)"
    # One that is asked for is none of these, and takes nothing back.
    await kernel.rest.restart(kernel.id)
    assert (await kernel.becomes("idle"))["restarts"] == restarts
    assert restarts in [listed.get("restarts") for listed in await kernel.rest.kernels()]


async def test_a_death_is_seen_at_once(start: KernelStarter) -> None:
    kernel = await start()
    delays = []
    for _ in range(4):
        pid = await kernel.pid()
        killed = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        await kernel.told("restarting")
        delays.append(time.monotonic() - killed)
        await kernel.told("idle")
    # A machine with other work to do may be late, but not each time.
    assert min(delays) < 0.5
    assert max(delays) < 10


@pytest.mark.parametrize(
    ("end", "reason"),
    [
        ("die 3", "exited with code 3"),
        ("die 0", "exited with code 0"),
        ("kill SIGSEGV", "SIGSEGV"),
        ("kill SIGTERM", "SIGTERM"),
    ],
)
async def test_the_reason_tells_how_it_ended(
    server: ServerProcess, start: KernelStarter, end: str, reason: str
) -> None:
    kernel = await start()
    mark = server.mark()
    exchange = await kernel.channels.execute(f"raw the last words\n{end}")
    assert exchange.reply["status"] == "aborted"
    assert reason in exchange.error["evalue"]
    assert "the last words" in exchange.error["evalue"]
    await kernel.told("idle")
    model = await kernel.model()
    assert model["execution_state"] == "idle"
    assert "reason" not in model  # that is over
    assert reason in model["restarts"]["reason"]
    logged = f"{kernel.id}: {exchange.error['evalue']}".replace("\n", "\n    ")
    await eventually(lambda: logged in server.output(mark))


@pytest.mark.parametrize("size", [10, 10_000])
async def test_nothing_that_it_said_before_it_died_is_lost(
    make_server: MakeServer, size: int
) -> None:
    server = make_server("--no-limit-rate")
    async with kernels_of(server) as start:
        kernel = await start()
        clients = [await kernel.connect(framing=framing) for framing in FRAMINGS]
        request = await kernel.channels.send_execute(f"flood 2000 {size}\nprint last\ndie 1")
        for channels in clients:
            exchange = await channels.exchange(request, replies=False)
            texts = [m.content["text"] for m in exchange.of_type("stream")]
            assert texts[-1] == "last\n"
            assert [int(text.split()[0]) for text in texts[:-1]] == list(range(1, 2001))


async def test_one_that_dies_while_it_waits_for_input_ends_the_execution(
    start: KernelStarter,
) -> None:
    kernel = await start()
    pid = await kernel.pid()
    request = await kernel.channels.send_execute("input name?", allow_stdin=True)
    question = await kernel.channels.seen(lambda m: m.msg_type == "input_request")
    os.kill(pid, signal.SIGKILL)
    assert (await kernel.channels.exchange(request)).reply["status"] == "aborted"
    # A late answer has nowhere to go, and does no harm.
    await kernel.channels.answer(question, "late")
    assert (await kernel.channels.execute("print here")).text == "here\n"


async def test_one_that_dies_with_no_client_is_restarted_and_its_state_is_told(
    start: KernelStarter,
) -> None:
    kernel = await start()
    pid = await kernel.pid()
    await kernel.channels.close()
    os.kill(pid, signal.SIGKILL)

    async def is_back() -> bool:
        model = await kernel.model()
        return model["execution_state"] == "idle" and "restarts" in model

    await eventually(is_back, 30)
    assert "SIGKILL" in (await kernel.model())["restarts"]["reason"]
    channels = await kernel.connect()
    assert (await channels.recv()).state == "idle"
    assert (await channels.execute("print here")).text == "here\n"


async def test_what_is_sent_while_it_restarts_waits_for_the_new_process(
    server: ServerProcess, start: KernelStarter
) -> None:
    write_kernelspec(server.home.jupyter_path, "slowly", Spec(flags=("--slow-start", "1")))
    kernel = await start("slowly")
    os.kill(await kernel.pid(), signal.SIGKILL)
    await kernel.told("restarting")
    exchange = await kernel.channels.execute("print here")
    assert exchange.reply["status"] == "ok"
    assert exchange.text == "here\n"


async def test_its_child_processes_die_with_it(server: ServerProcess, start: KernelStarter) -> None:
    kernel = await start("fake-children")
    pid = await kernel.pid()
    (spawned,) = [
        [child.pid for child in process.children()]
        for process in children(server.pid)
        if process.pid == pid
    ]
    assert len(spawned) == 2
    os.kill(pid, signal.SIGKILL)
    await kernel.told("restarting")
    await eventually(lambda: not any(is_alive(child) for child in spawned))
    await kernel.told("idle")
    assert (await kernel.channels.execute("print here")).text == "here\n"


async def test_many_that_die_at_once_all_come_back(start: KernelStarter) -> None:
    kernels = await asyncio.gather(*(start() for _ in range(8)))
    pids = [await kernel.pid() for kernel in kernels]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    async def comes_back(kernel: RunningKernel) -> int:
        await kernel.told("restarting")
        await kernel.told("idle")
        return await kernel.pid()

    assert not {*await asyncio.gather(*map(comes_back, kernels))} & {*pids}


async def test_a_python_kernel_that_is_left_by_a_cell_tells_so_and_comes_back(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("python3")
    channels: JupyterChannels = kernel.channels
    assert (await channels.execute("x = 41; x + 1")).result == "42"
    code = """if True:
        import os, time
        print("said before", flush=True)
        while not os.path.exists("go"): time.sleep(0.01)
        os._exit(13)"""
    request = await channels.send_execute(code)
    await channels.seen(lambda m: m.msg_type == "stream" and m.parent_id == request)
    (server.home.root_dir / "go").touch()
    exchange = await channels.exchange(request)
    assert exchange.text == "said before\n"
    assert exchange.error["ename"] == "KernelDied"
    assert exchange.error["evalue"] == "The kernel's process exited with code 13"
    assert exchange.reply["status"] == "aborted"
    await kernel.told("idle")
    assert (await channels.execute("x")).error["ename"] == "NameError"
