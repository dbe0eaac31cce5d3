"""The events of real kernels, as a subscriber gets them."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.conftest import MakeServer
from tests.support.events import EventListener, listening
from tests.support.kernelspecs import FAKE_KERNEL, Spec, write_kernelspec
from tests.support.rest import RestClient, RestError
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess


@pytest.fixture
async def events(server: ServerProcess) -> AsyncIterator[EventListener]:
    async with listening(server) as listener:
        yield listener


def removable(server: ServerProcess, directory: Path) -> Path:
    """The file that the kernelspec ``removable`` executes: the fake kernel, while it is there."""
    executable = directory / "kernel"
    executable.write_text(f'#!/bin/sh\nexec {sys.executable} {FAKE_KERNEL} -f "$1"\n')
    executable.chmod(0o700)
    spec = Spec(argv=(str(executable), "{connection_file}"))
    write_kernelspec(server.home.jupyter_path, "removable", spec)
    return executable


async def test_a_start_is_told_and_then_that_the_kernel_is_ready(
    events: EventListener, start: KernelStarter
) -> None:
    kernel = await start()
    started = await events.action("start", kernel_id=kernel.id)
    assert started["status"] == "success"
    assert started["msg"] == f"Kernel {kernel.id} was started."
    assert started["kernel_name"] == "fake"
    ready = await events.turn("ready", kernel_id=kernel.id)
    assert 0 < ready["seconds"] < 30
    assert events.told(kernel.id) == ["start success", "ready"]


async def test_a_start_that_cannot_be_is_told_with_its_id(
    events: EventListener, rest: RestClient
) -> None:
    kernel_id = str(uuid4())
    with pytest.raises(RestError) as raised:
        await rest.start_kernel("fake-missing", kernel_id=kernel_id)
    event = await events.action("start", kernel_id=kernel_id)
    assert event["status"] == "error"
    assert event["status_code"] == 500
    assert event["kernel_name"] == "fake-missing"
    assert event["msg"] == raised.value.error["message"]
    assert "/nonexistent/kernel" in event["msg"]


async def test_a_start_without_a_kernelspec_is_told(
    events: EventListener, rest: RestClient
) -> None:
    kernel_id = str(uuid4())
    with pytest.raises(RestError):
        await rest.start_kernel("no-such-spec", kernel_id=kernel_id)
    event = await events.action("start", kernel_id=kernel_id)
    assert (event["status"], event["status_code"]) == ("error", 404)
    assert "no-such-spec" in event["msg"]


async def test_a_process_that_does_not_come_up_is_told_as_dead(
    events: EventListener, start: KernelStarter
) -> None:
    kernel = await start("fake-exit", ready=False)
    dead = await events.turn("dead", kernel_id=kernel.id)
    assert "exited with code 7" in dead["reason"]
    assert events.told(kernel.id) == ["start success", "dead"]


async def test_an_interrupt_is_told(events: EventListener, start: KernelStarter) -> None:
    kernel = await start()
    await kernel.busy("sleep 60")
    await start.rest.interrupt(kernel.id)
    event = await events.action("interrupt", kernel_id=kernel.id)
    assert event["status"] == "success"
    assert event["msg"] == f"Kernel {kernel.id} was interrupted."


async def test_an_interrupt_of_a_dead_kernel_is_told_as_an_error(
    events: EventListener, start: KernelStarter
) -> None:
    kernel = await start("fake-exit", ready=False)
    await kernel.becomes("dead")
    with pytest.raises(RestError):
        await start.rest.interrupt(kernel.id)
    event = await events.action("interrupt", kernel_id=kernel.id)
    assert (event["status"], event["status_code"]) == ("error", 409)
    assert event["msg"] == f"Kernel {kernel.id} is not running"


async def test_a_restart_is_one_event_not_three(
    events: EventListener, start: KernelStarter
) -> None:
    kernel = await start()
    await start.rest.restart(kernel.id)
    event = await events.action("restart", kernel_id=kernel.id)
    assert event["status"] == "success"
    assert event["msg"] == f"Kernel {kernel.id} was restarted."
    await events.turn("ready", kernel_id=kernel.id)
    assert events.told(kernel.id) == ["start success", "ready", "restart success", "ready"]


async def test_a_restart_that_fails_is_told_and_the_kernel_is_dead(
    server: ServerProcess, events: EventListener, start: KernelStarter, tmp_path: Path
) -> None:
    executable = removable(server, tmp_path)
    kernel = await start("removable")
    # That its interpreter is gone only the launch tells.
    executable.unlink()
    executable.write_text("#!/nonexistent/interpreter\n")
    executable.chmod(0o700)
    with pytest.raises(RestError):
        await start.rest.restart(kernel.id)
    event = await events.action("restart", kernel_id=kernel.id)
    assert (event["status"], event["status_code"]) == ("error", 500)
    assert str(executable) in event["msg"]
    assert events.told(kernel.id)[2:] == ["dead", "restart error"]


async def test_a_shutdown_is_told(events: EventListener, start: KernelStarter) -> None:
    kernel = await start()
    await start.rest.delete(kernel.id)
    event = await events.action("shutdown", kernel_id=kernel.id)
    assert event["status"] == "success"
    assert event["msg"] == f"Kernel {kernel.id} was shutdown."
    assert events.told(kernel.id) == ["start success", "ready", "shutdown success"]


async def test_a_kernel_that_a_client_shuts_down_is_told_as_that(
    events: EventListener, start: KernelStarter
) -> None:
    kernel = await start()
    await kernel.channels.send("shutdown_request", {"restart": False}, "control")
    await events.turn("shut_down_by_client", kernel_id=kernel.id)
    assert events.told(kernel.id) == ["start success", "ready", "shut_down_by_client"]


async def test_an_automatic_restart_is_told_with_its_cause_and_as_a_restart(
    events: EventListener, start: KernelStarter
) -> None:
    kernel = await start()
    for count in (1, 2):
        await kernel.channels.send_execute("die 3")
        event = await events.turn("automatic_restart", kernel_id=kernel.id)
        assert event["count"] == count
        assert "exited with code 3" in event["reason"]
        assert (await events.action("restart", kernel_id=kernel.id))["status"] == "success"
        await events.turn("ready", kernel_id=kernel.id)
    assert events.told(kernel.id)[2:] == ["automatic_restart", "restart success", "ready"] * 2


async def test_an_automatic_restart_that_fails_is_told(
    server: ServerProcess, events: EventListener, start: KernelStarter, tmp_path: Path
) -> None:
    executable = removable(server, tmp_path)
    kernel = await start("removable")
    executable.unlink()
    await kernel.channels.send_execute("die 3")
    event = await events.action("restart", kernel_id=kernel.id)
    assert event["status"] == "error"
    assert str(executable) in event["msg"]
    dead = await events.turn("dead", kernel_id=kernel.id)
    assert dead["reason"] == event["msg"]
    assert events.told(kernel.id)[2:] == ["automatic_restart", "restart error", "dead"]


async def test_a_death_for_good_is_told_with_its_reason(make_server: MakeServer) -> None:
    server = make_server("--no-autorestart")
    async with kernels_of(server) as start, listening(server) as events:
        kernel = await start()
        await kernel.channels.send_execute("kill SIGSEGV")
        dead = await events.turn("dead", kernel_id=kernel.id)
        assert "SIGSEGV" in dead["reason"]
        assert events.told(kernel.id) == ["start success", "ready", "dead"]


async def test_a_cull_is_told_with_its_cause_and_as_a_shutdown(make_server: MakeServer) -> None:
    options = ("--cull-idle-timeout", "1.5", "--cull-interval", "0.1", "--cull-connected")
    server = make_server(*options)
    async with kernels_of(server) as start, listening(server) as events:
        kernel = await start()
        culled = await events.turn("culled", kernel_id=kernel.id)
        assert 1.5 < culled["idle_seconds"] < 30
        assert culled["connections"] == 1
        await events.action("shutdown", kernel_id=kernel.id, status="success")
        assert events.told(kernel.id) == ["start success", "ready", "culled", "shutdown success"]
