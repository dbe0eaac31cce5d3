"""Without flags, the fake kernel is a faithful kernel to the real ``jupyter_client``."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys

import pytest
import zmq
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager

from tests.kernels import fake
from tests.kernels.driver import (
    TIMEOUT,
    TRANSPORTS,
    Kernel,
    StartKernel,
    Transport,
    free_ports,
)
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_KERNEL, Spec, write_kernelspec
from tests.support.processes import eventually


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_kernel_info_on_shell_and_control(launch: StartKernel, transport: Transport) -> None:
    kernel = await launch(transport=transport)
    for channel in ("shell", "control"):
        exchange = await kernel.exchange(kernel.send("kernel_info_request", {}, channel), channel)
        assert exchange.states == ["busy", "idle"]
        assert exchange.reply["status"] == "ok"
        assert exchange.reply["implementation"] == "fake"
        assert exchange.reply["supported_features"] == []


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_execute(launch: StartKernel, transport: Transport) -> None:
    kernel = await launch(transport=transport)
    exchange = await kernel.run("print some text", "stderr oops", 'result "a  b"')
    on_iopub = [message.msg_type for message in exchange.messages if message.channel == "iopub"]
    assert on_iopub == [
        "status",
        "execute_input",
        "stream",
        "stream",
        "execute_result",
        "status",
    ]
    assert exchange.states == ["busy", "idle"]
    assert exchange.text == "some text\n"
    assert exchange.stream("stderr") == "oops\n"
    assert exchange.result == "a  b"
    count = exchange.reply["execution_count"]
    assert exchange.reply["status"] == "ok"
    assert exchange.of_type("execute_input")[0].content["execution_count"] == count
    assert (await kernel.run("")).reply["execution_count"] == count + 1


async def test_silent_execution_is_not_counted(kernel: Kernel) -> None:
    before = (await kernel.run("")).reply["execution_count"]
    silent = await kernel.run("", silent=True)
    assert silent.reply["execution_count"] == before
    assert silent.of_type("execute_input") == []


async def test_welcome_precedes_what_is_published(launch: StartKernel) -> None:
    kernel = await launch(ready=False)
    first = await kernel.receive("iopub")
    if first.state == "starting":
        first = await kernel.receive("iopub")
    assert first.msg_type == "iopub_welcome"
    assert first.content == {"subscription": ""}
    assert first.parent_header == {}


async def test_heartbeat_also_during_an_execution(kernel: Kernel) -> None:
    kernel.start("sleep 60")
    await kernel.running()
    context = kernel.client.context
    with context.socket(zmq.REQ) as heartbeat:
        heartbeat.linger = 0
        heartbeat.connect(f"tcp://127.0.0.1:{kernel.client.hb_port}")
        for _ in range(3):
            await heartbeat.send(b"ping")
            assert await asyncio.wait_for(heartbeat.recv(), TIMEOUT) == b"ping"


async def test_error_aborts_what_has_arrived(kernel: Kernel) -> None:
    ids = [kernel.start("sleep 0.5", "error Oops went wrong"), *map(kernel.start, ["print a"] * 3)]
    failed, *aborted = [await kernel.reply(msg_id) for msg_id in ids]
    assert failed.content["status"] == "error"
    assert failed.content["ename"] == "Oops"
    assert failed.content["evalue"] == "went wrong"
    assert [reply.content["status"] for reply in aborted] == ["aborted"] * 3
    await kernel.idle(ids[-1])
    assert kernel.so_far(ids[0]).error["ename"] == "Oops"
    assert kernel.so_far(ids[-1]).states == ["busy", "idle"]
    assert kernel.so_far(ids[-1]).outputs == []
    assert (await kernel.run("print b")).text == "b\n"


async def test_error_without_stop_on_error_aborts_nothing(kernel: Kernel) -> None:
    kernel.start("sleep 0.5", "error Oops", stop_on_error=False)
    assert (await kernel.exchange(kernel.start("print a"))).text == "a\n"


@pytest.mark.parametrize(
    ("code", "ename"),
    [
        ("no-such-command", "NameError"),
        ("sleep soon", "ValueError"),
        ("flood", "TypeError"),
        ("kill SIGNOTHING", "KeyError"),
        ("print 'unclosed", "ValueError"),
        ("env NO_SUCH_VARIABLE", "KeyError"),
    ],
)
async def test_faulty_code_is_an_error(kernel: Kernel, code: str, ename: str) -> None:
    exchange = await kernel.run(code)
    assert exchange.reply["status"] == "error"
    assert exchange.error["ename"] == exchange.reply["ename"] == ename


async def test_control_is_answered_while_shell_waits(kernel: Kernel) -> None:
    running = kernel.start("sleep 1")
    waiting = kernel.send("kernel_info_request", {}, "shell")
    await kernel.running()
    await kernel.exchange(kernel.send("kernel_info_request"), "control")
    assert kernel.so_far(running).replies == []
    await kernel.reply(waiting)
    assert len(kernel.so_far(running).replies) == 1


@pytest.mark.parametrize("how", ["signal", "message"])
async def test_interrupt(kernel: Kernel, how: str) -> None:
    running = kernel.start("print before", "sleep 60", "print after")
    await kernel.running()
    if how == "signal":
        kernel.process.send_signal(signal.SIGINT)
    else:
        exchange = await kernel.exchange(kernel.send("interrupt_request"), "control")
        assert exchange.reply == {"status": "ok"}
    exchange = await kernel.exchange(running)
    assert exchange.reply["ename"] == "KeyboardInterrupt"
    assert exchange.error["ename"] == "KeyboardInterrupt"
    assert exchange.text == "before\n"


async def test_interrupt_of_an_idle_kernel_does_nothing(kernel: Kernel) -> None:
    kernel.process.send_signal(signal.SIGINT)
    assert (await kernel.run("sleep 0.2", "print fine")).text == "fine\n"


async def test_input(kernel: Kernel) -> None:
    running = kernel.start("input Your name:", allow_stdin=True)
    request = await kernel.receive("stdin")
    assert request.msg_type == "input_request"
    assert request.parent_id == running
    assert request.content == {"prompt": "Your name:", "password": False}
    assert await kernel.is_silent("shell")
    kernel.client.input("Ada")
    assert (await kernel.exchange(running)).text == "Ada\n"


async def test_input_without_a_frontend_is_an_error(kernel: Kernel) -> None:
    assert (await kernel.run("input ?")).reply["ename"] == "StdinNotImplementedError"


async def test_input_can_be_interrupted(kernel: Kernel) -> None:
    running = kernel.start("input ?", allow_stdin=True)
    await kernel.receive("stdin")
    kernel.process.send_signal(signal.SIGINT)
    assert (await kernel.exchange(running)).reply["ename"] == "KeyboardInterrupt"
    kernel.client.input("too late")
    assert (await kernel.run("print on")).text == "on\n"


async def test_introspection(kernel: Kernel) -> None:
    client = kernel.client
    completion = await kernel.reply(client.complete("print x\nflo"))
    assert completion.content["matches"] == ["flood"]
    assert (completion.content["cursor_start"], completion.content["cursor_end"]) == (8, 11)
    assert (await kernel.reply(client.inspect("flood"))).content["found"]
    assert not (await kernel.reply(client.inspect("deluge"))).content["found"]
    assert (await kernel.reply(client.is_complete("print"))).content["status"] == "complete"
    assert (await kernel.reply(client.is_complete("print\\"))).content["status"] == "incomplete"
    await kernel.run("print kept")
    history = (await kernel.reply(client.history())).content["history"]
    assert history[-1][2] == "print kept"


async def test_comms(kernel: Kernel) -> None:
    opened = (await kernel.run("comm target")).of_type("comm_open")[0]
    assert opened.content["target_name"] == "target"
    assert opened.buffers == [b"comm", b""]
    comm_id = opened.content["comm_id"]
    comms = (await kernel.reply(kernel.client.comm_info("target"))).content["comms"]
    assert comms == {comm_id: {"target_name": "target"}}

    session, shell = kernel.client.session, kernel.client.shell_channel.socket
    content = {"comm_id": comm_id, "data": {"n": 2}}
    message = session.msg("comm_msg", content)
    session.send(shell, message, buffers=[b"\x00\xff"])
    msg_id = message["header"]["msg_id"]
    await kernel.idle(msg_id)
    (echo,) = kernel.so_far(msg_id).outputs
    assert (echo.msg_type, echo.content, echo.buffers) == ("comm_msg", content, [b"\x00\xff"])

    kernel.send("comm_close", {"comm_id": comm_id}, "shell")
    assert (await kernel.reply(kernel.client.comm_info())).content["comms"] == {}


@pytest.mark.parametrize("restart", [False, True])
async def test_shutdown(kernel: Kernel, restart: bool) -> None:
    msg_id = kernel.send("shutdown_request", {"restart": restart})
    exchange = await kernel.exchange(msg_id, "control")
    assert exchange.reply == {"status": "ok", "restart": restart}
    assert [message.msg_type for message in exchange.outputs] == ["shutdown_reply"]
    assert await kernel.ended() == (0, "")


async def test_shutdown_during_an_execution(kernel: Kernel) -> None:
    kernel.start("sleep 60")
    await kernel.running()
    await kernel.reply(kernel.send("shutdown_request", {"restart": False}), "control")
    assert await kernel.ended() == (0, "")


async def test_unknown_and_unsigned_requests(kernel: Kernel) -> None:
    msg_id = kernel.send("debug_request")
    await kernel.idle(msg_id)
    assert kernel.so_far(msg_id).states == ["busy", "idle"]
    await kernel.client.shell_channel.socket.send_multipart([b"garbage"])
    await kernel.client.shell_channel.socket.send_multipart(
        [b"<IDS|MSG>", b"0" * 64, b"{}", b"{}", b"{}", b"{}"]
    )
    assert (await kernel.run("print alive")).text == "alive\n"
    kernel.send("shutdown_request")
    _, output = await kernel.ended()
    assert output.count("message dropped") == 2
    assert "wrong signature" in output


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_life_under_a_kernel_manager(home: Home, transport: Transport) -> None:
    write_kernelspec(home.jupyter_path, "fake", Spec(env={"COLOUR": "blue"}))
    specs = KernelSpecManager(kernel_dirs=[str(home.jupyter_path / "kernels")])
    manager = AsyncKernelManager(
        kernel_name="fake",
        kernel_spec_manager=specs,
        transport=transport,
        connection_file=str(home.path / "k.json"),
        cache_ports=False,
        **(free_ports() if transport == "tcp" else {}),
    )
    await manager.start_kernel(cwd=str(home.root_dir))
    client = manager.client()
    client.start_channels()
    kernel = Kernel(None, client)  # type: ignore[arg-type]
    try:
        for _ in range(2):
            await kernel.ready()
            exchange = await kernel.run("env COLOUR", "cwd")
            assert exchange.text == f"blue\n{home.root_dir}\n"
            await eventually(client.hb_channel.is_beating)
            running = kernel.start("sleep 60")
            await kernel.running()
            await manager.interrupt_kernel()
            assert (await kernel.reply(running)).content["ename"] == "KeyboardInterrupt"
            await manager.restart_kernel()
    finally:
        client.stop_channels()
        await manager.shutdown_kernel()
        client.context.destroy(linger=0)
    assert home.processes() == []
    assert home.leftovers() == []


def test_every_command_is_documented() -> None:
    table = (fake.__doc__ or "").split("=\nCommand")[1].split("=\nFlag")[0]
    first_words = "\n".join(line[:24] for line in table.splitlines())
    assert [name for name in fake.COMMANDS if name not in first_words] == []


def test_every_flag_is_documented() -> None:
    assert [flag for flag in fake.FLAGS if f"\n{flag}" not in (fake.__doc__ or "")] == ["-f"]


def test_an_unknown_flag_is_named() -> None:
    ended = subprocess.run(
        [sys.executable, str(FAKE_KERNEL), "--none-such"], stderr=subprocess.PIPE, text=True
    )
    assert (ended.returncode, ended.stderr) == (1, "fake kernel: there is no flag --none-such\n")
