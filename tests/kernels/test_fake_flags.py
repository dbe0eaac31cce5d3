"""What the fake kernel is told to do by its command line."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from tests.kernels.driver import (
    TIMEOUT,
    Kernel,
    StartKernel,
    Transport,
    run_fake,
)
from tests.support.processes import children, eventually, is_alive


async def test_exit_at_once(launch: StartKernel) -> None:
    kernel = await launch("--exit", "7", "--stderr", "no licence", ready=False)
    assert await kernel.ended() == (7, "no licence\n")


async def test_slow_start(launch: StartKernel) -> None:
    start = time.monotonic()
    await launch("--slow-start", "1")
    assert time.monotonic() - start > 1


@pytest.mark.parametrize(
    ("flags", "transport"),
    [(("--never-bind",), "tcp"), (("--never-answer",), "tcp"), (("--no-ipc", "hang"), "ipc")],
)
async def test_no_answer(launch: StartKernel, flags: tuple[str, ...], transport: Transport) -> None:
    kernel = await launch(*flags, transport=transport, ready=False)
    kernel.send("kernel_info_request")
    kernel.send("kernel_info_request", {}, "shell")
    kernel.process.send_signal(signal.SIGCONT)
    for channel in ("control", "shell", "iopub"):
        assert await kernel.is_silent(channel)
    assert is_alive(kernel.process.pid)
    kernel.process.terminate()
    assert (await kernel.ended())[0] == -signal.SIGTERM


async def test_never_answer_takes_connections(launch: StartKernel) -> None:
    kernel = await launch("--never-answer", ready=False)
    assert await eventually(kernel.has_bound)


async def test_no_ipc_exits(launch: StartKernel) -> None:
    kernel = await launch("--no-ipc", "exit", transport="ipc", ready=False)
    code, output = await kernel.ended()
    assert code == 1
    assert "ipc is not supported" in output


@pytest.mark.parametrize("how", ["exit", "hang"])
async def test_no_ipc_matters_not_to_tcp(launch: StartKernel, how: str) -> None:
    kernel = await launch("--no-ipc", how)
    assert (await kernel.run("print fine")).text == "fine\n"


async def test_no_welcome(launch: StartKernel) -> None:
    kernel = await launch("--no-welcome")
    assert all(message.msg_type != "iopub_welcome" for message in kernel.log)


async def test_no_control_kernel_info(launch: StartKernel) -> None:
    kernel = await launch("--no-control-kernel-info")
    kernel.send("kernel_info_request")
    assert await kernel.is_silent("control")
    assert await kernel.is_silent("iopub")
    assert (await kernel.reply(kernel.send("shutdown_request"), "control")).content[
        "restart"
    ] is False


async def test_wrong_key(launch: StartKernel) -> None:
    kernel = await launch("--wrong-key", ready=False)
    kernel.send("kernel_info_request")
    (frames,) = await kernel.frames("control", 1)
    assert not kernel.is_signed(frames)


async def test_ignore_sigterm(launch: StartKernel) -> None:
    kernel = await launch("--ignore-sigterm")
    kernel.process.terminate()
    assert (await kernel.run("sleep 0.2", "print fine")).text == "fine\n"


async def test_ignore_sigint(launch: StartKernel) -> None:
    kernel = await launch("--ignore-sigint")
    running = kernel.start("sleep 60")
    await kernel.running()
    kernel.process.send_signal(signal.SIGINT)
    assert await kernel.is_silent("shell")
    kernel.send("interrupt_request")
    assert (await kernel.reply(running)).content["ename"] == "KeyboardInterrupt"


async def test_ignore_shutdown(launch: StartKernel) -> None:
    kernel = await launch("--ignore-shutdown")
    msg_id = kernel.send("shutdown_request", {"restart": False})
    await kernel.idle(msg_id)
    assert await kernel.is_silent("control")
    assert (await kernel.run("print fine")).text == "fine\n"


async def test_children_outlive_the_kernel_in_its_group(launch: StartKernel) -> None:
    kernel = await launch("--children", "2", "--ignore-sigterm")
    pids = [child.pid for child in children(kernel.process.pid)]
    assert len(pids) == 2
    assert {os.getpgid(pid) for pid in pids} == {kernel.process.pid}
    kernel.start("kill SIGKILL")
    # Not `ended`: the children hold the pipe of the output.
    await eventually(lambda: kernel.process.poll() is not None)
    for number in (signal.SIGINT, signal.SIGTERM):
        os.killpg(kernel.process.pid, number)
    await asyncio.sleep(0.2)
    assert all(map(is_alive, pids))
    os.killpg(kernel.process.pid, signal.SIGKILL)
    await eventually(lambda: not any(map(is_alive, pids)))


async def test_taken_port_ends_the_start(launch: StartKernel, kernel: Kernel) -> None:
    second = run_fake(kernel.connection_file)
    output, _ = await asyncio.to_thread(second.communicate, timeout=TIMEOUT)
    assert second.returncode == 1
    assert "Address already in use" in output
