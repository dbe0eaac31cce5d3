"""Restarts that a client asks for, over REST."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.conftest import MakeServer
from tests.support.executions import Executions
from tests.support.kernelspecs import Spec, shell_spec, write_kernelspec
from tests.support.processes import children, eventually, is_alive
from tests.support.rest import RestClient, RestError
from tests.support.running import KernelStarter, RunningKernel, kernels_of
from tests.support.server import ServerProcess


async def new_pid(kernel: RunningKernel, before: int) -> int:
    """The process id after a restart, which is another one than ``before``."""
    await kernel.becomes("idle")
    pid = await kernel.pid()
    assert pid != before
    return pid


async def test_a_restart_gives_a_new_process_to_the_same_kernel(start: KernelStarter) -> None:
    kernel = await start()
    pid = await kernel.pid()
    model = await kernel.rest.restart(kernel.id)
    assert model["id"] == kernel.id
    assert model["name"] == "fake"
    assert model["execution_state"] in ("restarting", "starting")
    assert model["connections"] == 1
    assert "reason" not in model
    assert not is_alive(pid)
    await new_pid(kernel, pid)
    assert [k["id"] for k in await kernel.rest.kernels()] == [kernel.id]


async def test_clients_get_the_ends_of_their_requests_then_the_new_state(
    start: KernelStarter,
) -> None:
    kernel = await start()
    first, second = kernel.channels, await kernel.connect()
    running = await kernel.busy("hang")
    waiting = await second.send_execute("print never")
    await second.request("kernel_info_request")
    await kernel.rest.restart(kernel.id)
    for channels, request in ((first, running), (second, waiting)):
        exchange = await channels.exchange(request)
        assert exchange.reply["status"] == "aborted"
        assert exchange.states[-1] == "idle"
        assert not exchange.of_type("error")  # it was asked for; nothing has died
        told = await kernel.told("idle", channels=channels)
        assert "restarting" not in [m.state for m in told]
    for channels in (first, second):
        states = [m.state for m in channels.log if m.state and not m.parent_header]
        assert "dead" not in states
        assert states[-1] == "idle"
        assert "starting" in states
        assert (await channels.execute("print here")).text == "here\n"


async def test_a_cell_that_can_be_interrupted_says_so_before_the_restart(
    start: KernelStarter,
) -> None:
    kernel = await start("python3")
    code = "import time; x = 1; print('begun', flush=True)\ntime.sleep(100)"
    request = await kernel.begins(code)
    await kernel.rest.restart(kernel.id)
    exchange = await kernel.channels.exchange(request)
    assert exchange.error["ename"] == "KeyboardInterrupt"
    assert exchange.states[-1] == "idle"
    await kernel.becomes("idle")
    assert (await kernel.channels.execute("x")).error["ename"] == "NameError"


async def test_what_is_sent_during_a_restart_waits_for_the_new_process(
    start: KernelStarter,
) -> None:
    kernel = await start("fake-no-shutdown")
    assert (await kernel.channels.execute("print here")).reply["execution_count"] == 1
    restart = asyncio.create_task(kernel.rest.restart(kernel.id))
    await kernel.told("starting")
    exchange = await kernel.channels.execute("print here")
    assert exchange.reply["status"] == "ok"
    assert exchange.reply["execution_count"] == 1  # a count of its own
    await restart


async def test_two_restarts_at_once_both_succeed(start: KernelStarter) -> None:
    kernel = await start()
    pid = await kernel.pid()
    models = await asyncio.gather(*(kernel.rest.restart(kernel.id) for _ in range(3)))
    assert {model["id"] for model in models} == {kernel.id}
    await new_pid(kernel, pid)


async def test_a_restart_of_a_kernel_that_is_still_starting_works(start: KernelStarter) -> None:
    kernel = await start("fake-slow", ready=False)
    await kernel.rest.restart(kernel.id)
    assert (await kernel.channels.execute("print here")).text == "here\n"


@pytest.mark.parametrize("first", ["restart", "delete"])
async def test_a_restart_and_a_deletion_at_once_end_in_the_deletion(
    server: ServerProcess, start: KernelStarter, first: str
) -> None:
    kernel = await start()
    pid = await kernel.pid()
    rest = kernel.rest
    actions = {"restart": rest.restart(kernel.id), "delete": rest.delete(kernel.id)}
    order = sorted(actions, key=lambda name: name != first)
    outcomes = await asyncio.gather(*(actions[name] for name in order), return_exceptions=True)
    results = dict(zip(order, outcomes, strict=True))
    assert results["delete"] is None
    restarted = results["restart"]
    if isinstance(restarted, RestError):
        assert restarted.status in (404, 409)
    else:
        assert not isinstance(restarted, BaseException), restarted
    assert (await kernel.channels.closed()).code == 4404
    assert not is_alive(pid)
    await eventually(lambda: not children(server.pid))
    assert await rest.kernels() == []


async def test_an_unknown_kernel_is_not_found(rest: RestClient) -> None:
    with pytest.raises(RestError) as raised:
        await rest.restart("11111111-2222-3333-4444-555555555555")
    assert raised.value.status == 404
    assert raised.value.error["code"] == "kernel_not_found"


async def test_a_dead_kernel_can_be_restarted(server: ServerProcess, start: KernelStarter) -> None:
    script = "if [ -e broken ]; then exit 9; fi; exec $FAKE"
    write_kernelspec(server.home.jupyter_path, "repaired", shell_spec(script))
    broken = server.home.root_dir / "broken"
    broken.touch()
    kernel = await start("repaired", ready=False)
    await kernel.becomes("dead")
    broken.unlink()
    model = await kernel.rest.restart(kernel.id)
    assert model["execution_state"] != "dead"
    assert "reason" not in model
    await kernel.becomes("idle")
    assert (await kernel.channels.execute("print here")).text == "here\n"


async def refused(kernel: RunningKernel, told: str) -> None:
    """Its restart is refused, with a text that tells this; the process it had works on."""
    pid = await kernel.pid()
    with pytest.raises(RestError) as raised:
        await kernel.rest.restart(kernel.id)
    assert raised.value.status == 500
    assert raised.value.error["code"] == "kernel_start_failed"
    assert told in raised.value.error["message"]
    assert (await kernel.model())["execution_state"] == "idle"
    assert "reason" not in await kernel.model()
    assert await kernel.pid() == pid


async def test_a_restart_that_is_known_to_fail_leaves_the_old_process_as_it_is(
    server: ServerProcess, start: KernelStarter
) -> None:
    program = server.home.root_dir / "program"
    write_program(program, 'exec "$@"')
    argv = (str(program), *Spec().as_json("")["argv"])
    write_kernelspec(server.home.jupyter_path, "removable", Spec(argv=argv))
    kernel = await start("removable")
    program.chmod(0o600)
    await refused(kernel, str(program))
    program.unlink()
    await refused(kernel, str(program))
    program.mkdir()
    await refused(kernel, str(program))
    program.rmdir()
    write_program(program, 'exec "$@"')
    pid = await kernel.pid()
    await kernel.rest.restart(kernel.id)
    assert await kernel.pid() != pid


@pytest.mark.parametrize("how", ["restart", "death"])
async def test_one_whose_directory_is_gone_works_in_the_nearest_that_is_there(
    server: ServerProcess, start: KernelStarter, how: str
) -> None:
    root = server.home.root_dir
    directory = root / f"was-{how}" / "here"
    directory.mkdir(parents=True)
    kernel = await start("fake", path=f"was-{how}/here")

    async def works_in() -> str:
        """Where the next process does."""
        if how == "restart":
            await kernel.rest.restart(kernel.id)
        else:
            await kernel.channels.execute("die 3")
        return (await kernel.channels.execute("cwd")).text.removesuffix("\n")

    directory.rmdir()
    assert await works_in() == str(directory.parent)
    directory.parent.rmdir()
    assert await works_in() == str(root)
    # A link in its place that leads out of the root is not followed.
    directory.parent.symlink_to("/")
    assert await works_in() == str(root)
    directory.parent.unlink()
    directory.mkdir(parents=True)
    assert await works_in() == str(directory)


async def test_without_the_state_directory_kernels_run_on_and_none_is_ended_for_another(
    make_server: MakeServer,
) -> None:
    server = make_server()
    async with kernels_of(server) as start:
        kernel = await start("fake")
        await kernel.channels.execute("print all sockets are connected")
        shutil.rmtree(server.home.state_dir)
        assert (await kernel.channels.execute("print still here")).text == "still here\n"
        await refused(kernel, "connection file")
        with pytest.raises(RestError) as raised:
            await kernel.rest.start_kernel("fake")
        assert raised.value.error["code"] == "kernel_start_failed"
        assert not server.home.state_dir.exists()  # it would be open to others
        execution = await Executions(kernel.rest, kernel.id).run("print and here")
        assert execution["state"] == "ok"
        await kernel.rest.delete(kernel.id)
        await kernel.channels.close()
    await asyncio.to_thread(server.stop)
    assert server.home.leftovers() == []


async def test_a_program_found_by_the_path_of_its_kernelspec_is_no_reason_to_refuse(
    server: ServerProcess, start: KernelStarter
) -> None:
    directory = server.home.root_dir / "bin"
    directory.mkdir()
    write_program(directory / "found-here", 'exec "$@"')
    argv = ("found-here", *Spec().as_json("")["argv"])
    env = {"PATH": f"{directory}:${{PATH}}"}
    write_kernelspec(server.home.jupyter_path, "by-path", Spec(argv=argv, env=env))
    kernel = await start("by-path")
    pid = await kernel.pid()
    await kernel.rest.restart(kernel.id)
    assert await kernel.pid() != pid
    (directory / "found-here").unlink()
    await refused(kernel, "found-here")


async def test_a_restart_that_cannot_be_launched_leaves_the_kernel_dead_and_says_why(
    server: ServerProcess, start: KernelStarter
) -> None:
    program = server.home.root_dir / "interpreted"
    write_program(program, 'exec "$@"')
    argv = (str(program), *Spec().as_json("")["argv"])
    write_kernelspec(server.home.jupyter_path, "interpreted", Spec(argv=argv))
    kernel = await start("interpreted")
    # It is there, and can be executed: that its interpreter is gone only the launch tells.
    program.write_text("#!/nonexistent/interpreter\n")
    with pytest.raises(RestError) as raised:
        await kernel.rest.restart(kernel.id)
    assert raised.value.status == 500
    assert raised.value.error["code"] == "kernel_start_failed"
    assert str(program) in raised.value.error["message"]
    await kernel.told("dead")
    model = await kernel.model()
    assert model["execution_state"] == "dead"
    assert str(program) in model["reason"]
    assert (await kernel.channels.execute("print never")).reply["status"] == "aborted"


def write_program(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)


async def test_a_process_that_dies_while_it_restarts_is_replaced(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("fake-slow")
    pid = await kernel.pid()
    await kernel.rest.restart(kernel.id)
    (successor,) = (process.pid for process in children(server.pid))
    os.kill(successor, signal.SIGKILL)
    await kernel.told("restarting")
    await kernel.told("idle")
    assert await kernel.pid() not in (pid, successor)


async def test_one_that_is_killed_while_it_is_asked_to_stop_restarts_all_the_same(
    start: KernelStarter,
) -> None:
    kernel = await start("fake-no-shutdown")
    pid = await kernel.pid()
    restart = asyncio.create_task(kernel.rest.restart(kernel.id))
    await kernel.told("starting")
    os.kill(pid, signal.SIGKILL)
    await restart
    await new_pid(kernel, pid)
    assert "reason" not in await kernel.model()


async def test_restarts_that_are_asked_for_have_no_limit(make_server: MakeServer) -> None:
    server = make_server("--restart-limit", "1")
    async with kernels_of(server) as start:
        kernel = await start()
        for _ in range(4):
            await kernel.rest.restart(kernel.id)
            await kernel.becomes("idle")


async def test_its_state_after_a_restart_is_true_whoever_looks(start: KernelStarter) -> None:
    kernel = await start()
    await kernel.busy("sleep 60")
    assert (await kernel.model())["execution_state"] == "busy"
    await kernel.rest.restart(kernel.id)
    await kernel.becomes("idle")
    late = await kernel.connect()
    assert (await late.recv()).state == "idle"
