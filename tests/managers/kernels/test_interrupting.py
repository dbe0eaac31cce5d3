"""Interrupts over REST: by signal, by message, and of kernels that run nothing."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.support.executions import Executions
from tests.support.kernelspecs import shell_spec, write_kernelspec
from tests.support.processes import children, eventually, is_alive
from tests.support.rest import RestClient, RestError
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess


@pytest.mark.parametrize("name", ["fake", "fake-message"])
async def test_what_runs_is_interrupted_as_the_kernelspec_says(
    start: KernelStarter, name: str
) -> None:
    kernel = await start(name)
    request = await kernel.busy("print begun\nsleep 100")
    await kernel.rest.interrupt(kernel.id)
    exchange = await kernel.channels.exchange(request)
    assert exchange.error["ename"] == "KeyboardInterrupt"
    assert exchange.reply["status"] == "error"
    assert exchange.states == ["busy", "idle"]
    assert (await kernel.channels.execute("print here")).text == "here\n"


async def test_a_python_kernel_is_interrupted(start: KernelStarter) -> None:
    kernel = await start("python3")
    request = await kernel.begins("import time; print('begun', flush=True)\ntime.sleep(100)")
    await kernel.rest.interrupt(kernel.id)
    exchange = await kernel.channels.exchange(request)
    assert exchange.error["ename"] == "KeyboardInterrupt"
    assert (await kernel.model())["execution_state"] == "idle"


AWAIT = "print('begun', flush=True)\nimport asyncio\nawait asyncio.sleep(100)"


@pytest.mark.parametrize("how", ["rest", "websocket", "cancel"])
async def test_code_that_awaits_is_interrupted_and_the_kernel_keeps_its_state(
    start: KernelStarter, how: str
) -> None:
    kernel = await start("python3")
    await kernel.channels.execute("x = 1")
    request = await kernel.begins(AWAIT)
    if how == "rest":
        await kernel.rest.interrupt(kernel.id)
    elif how == "websocket":
        await kernel.channels.send("interrupt_request", {}, channel="control")
    else:
        await Executions(kernel.rest, kernel.id).cancel(request)
    exchange = await kernel.channels.exchange(request)
    assert exchange.error["ename"] == "CancelledError"
    assert (await kernel.channels.execute("x")).result == "1"


async def test_code_that_awaits_longer_than_its_timeout_does_not_cost_the_kernel_its_state(
    start: KernelStarter,
) -> None:
    kernel = await start("python3")
    executions = Executions(kernel.rest, kernel.id)
    await executions.run("x = 1")
    ended = await executions.run(AWAIT, timeout=2)
    assert ended["state"] == "error"
    assert ended["outputs"][-1]["ename"] == "CancelledError"
    assert [step["step"] for step in ended["steps"]] == ["timeout", "interrupt"]
    assert (await executions.run("x"))["outputs"][0]["data"]["text/plain"] == "1"


async def test_an_idle_kernel_is_not_harmed(start: KernelStarter) -> None:
    kernel = await start()
    pid = await kernel.pid()
    for _ in range(5):
        await kernel.rest.interrupt(kernel.id)
    assert await kernel.pid() == pid


@pytest.mark.parametrize("mode", ["signal", "message"])
async def test_a_kernel_that_is_starting_is_not_harmed(
    server: ServerProcess, start: KernelStarter, mode: str
) -> None:
    # An interrupt that reached it would end it: so early it has no handler.
    script = "while [ ! -e go ]; do sleep 0.02; done; exec $FAKE"
    spec = shell_spec(script, interrupt_mode=mode)
    write_kernelspec(server.home.jupyter_path, "gated", spec)
    folder = server.home.root_dir / mode
    folder.mkdir()
    kernel = await start("gated", ready=False, path=mode)
    pending = await kernel.channels.send_execute("print here")
    for _ in range(5):
        await kernel.rest.interrupt(kernel.id)
    (folder / "go").touch()
    exchange = await kernel.channels.exchange(pending)
    assert exchange.text == "here\n"
    assert not exchange.of_type("error")


async def test_a_python_kernel_that_is_starting_is_not_harmed(start: KernelStarter) -> None:
    kernel = await start("python3", ready=False)
    while (await kernel.model())["execution_state"] == "starting":
        await kernel.rest.interrupt(kernel.id)
    assert (await kernel.channels.execute("1 + 1")).result == "2"
    assert "reason" not in await kernel.model()


async def test_one_that_is_restarting_is_not_harmed(start: KernelStarter) -> None:
    kernel = await start("fake-slow")
    pid = await kernel.pid()
    await kernel.rest.restart(kernel.id)
    await kernel.rest.interrupt(kernel.id)
    assert (await kernel.channels.execute("print here")).text == "here\n"
    assert await kernel.pid() != pid
    assert "reason" not in await kernel.model()


async def test_a_dead_one_is_not_running(start: KernelStarter) -> None:
    kernel = await start("fake-exit", ready=False)
    await kernel.becomes("dead")
    with pytest.raises(RestError) as raised:
        await kernel.rest.interrupt(kernel.id)
    assert raised.value.status == 409
    assert raised.value.error["code"] == "kernel_not_running"


async def test_an_unknown_one_is_not_found(rest: RestClient) -> None:
    with pytest.raises(RestError) as raised:
        await rest.interrupt("11111111-2222-3333-4444-555555555555")
    assert raised.value.status == 404
    assert raised.value.error["code"] == "kernel_not_found"


async def test_one_that_does_not_react_answers_the_request_all_the_same(
    start: KernelStarter,
) -> None:
    kernel = await start()
    await kernel.busy("hang")
    asked = time.monotonic()
    await kernel.rest.interrupt(kernel.id)
    assert time.monotonic() - asked < 10
    assert (await kernel.model())["execution_state"] == "busy"


async def test_its_child_processes_are_interrupted_with_it(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("python3")
    code = """if True:
        import subprocess
        print(subprocess.Popen(["sleep", "100"]).wait())"""
    request = await kernel.busy(code)
    child = await eventually(lambda: sleeping(server))
    await kernel.rest.interrupt(kernel.id)
    exchange = await kernel.channels.exchange(request)
    assert exchange.error["ename"] == "KeyboardInterrupt"
    await eventually(lambda: not is_alive(child[0]))


def sleeping(server: ServerProcess) -> list[int]:
    return [process.pid for process in children(server.pid) if process.name() == "sleep"]


async def test_what_waits_behind_an_interrupted_cell_is_aborted_by_the_kernel(
    start: KernelStarter,
) -> None:
    kernel = await start()
    request = await kernel.busy("sleep 100")
    waiting = [await kernel.channels.send_execute("print never") for _ in range(3)]
    # The kernel has them all when it has what was sent behind them on the same channel: its
    # control channel is answered meanwhile, but says nothing of that.
    await kernel.channels.request("kernel_info_request", channel="control")
    await kernel.rest.interrupt(kernel.id)
    assert (await kernel.channels.exchange(request)).reply["status"] == "error"
    replies = [(await kernel.channels.exchange(msg_id)).reply["status"] for msg_id in waiting]
    assert replies == ["aborted"] * 3


async def test_a_stopped_process_is_interrupted_when_it_goes_on(start: KernelStarter) -> None:
    kernel = await start()
    pid = await kernel.pid()
    request = await kernel.busy("sleep 100")
    os.kill(pid, signal.SIGSTOP)
    await kernel.rest.interrupt(kernel.id)
    os.kill(pid, signal.SIGCONT)
    exchange = await kernel.channels.exchange(request)
    assert exchange.error["ename"] == "KeyboardInterrupt"
