"""Provisioners that fail: what cannot be reached is shown so, is not dead, and is not forgotten."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.drill import KEEP, Servers
from tests.support.executions import Executions
from tests.support.far import SPEC, expect, fail, install_far
from tests.support.home import Home
from tests.support.kernelspecs import Spec, write_broken_kernelspec, write_kernelspec
from tests.support.lively import pid_of
from tests.support.processes import eventually, is_alive
from tests.support.rest import RestClient, RestError

DEAF = Spec(flags=("--ignore-shutdown",), metadata=SPEC.metadata)

UNSTOPPABLE = ("send_signal", "terminate", "kill")


@pytest.fixture
def far(servers: Servers, home: Home) -> Path:
    """Where the provisioner of ``far`` kernels is told to fail."""
    directory = home.path / "far"
    servers.env = install_far(directory)
    servers.arguments = (*KEEP, "--shutdown-wait-time", "0.4", "--max-kernels", "2")
    write_kernelspec(home.jupyter_path, "far", DEAF)
    expect(directory, 0)
    fail(directory)
    return directory


@pytest.fixture
async def rest(servers: Servers, far: Path) -> AsyncIterator[RestClient]:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as client:
        yield client
        fail(far)
        for model in await client.kernels():
            await client.delete(model["id"])
    await asyncio.to_thread(server.stop)


async def refused(rest: RestClient, action: str, kernel_id: str) -> None:
    with pytest.raises(RestError) as raised:
        await getattr(rest, action)(kernel_id)
    assert raised.value.status == 503
    assert raised.value.error["code"] == "kernel_not_stopped"
    assert "could not be ended" in raised.value.error["message"]


@pytest.mark.parametrize(("how", "calls"), [("raise", UNSTOPPABLE), ("hang", ("kill",))])
async def test_a_kernel_that_cannot_be_ended_is_listed_and_works_on(
    rest: RestClient, far: Path, how: str, calls: tuple[str, ...]
) -> None:
    kernel_id = (await rest.start_kernel("far"))["id"]
    other = (await rest.start_kernel("far"))["id"]
    pid = await pid_of(rest, kernel_id)
    # A signal that arrives would end it.
    fail(far, how, *calls, *({"terminate"} - {*calls}))
    refusals = [refused(rest, "delete", kernel_id) for _ in range(2)]
    if how == "raise":
        refusals.append(refused(rest, "restart", kernel_id))
    await asyncio.gather(*refusals)
    model = await rest.kernel(kernel_id)
    assert model["execution_state"] == "idle"
    assert "could not be ended" in model["reason"]
    assert await pid_of(rest, kernel_id) == pid
    with pytest.raises(RestError) as raised:
        await rest.start_kernel("far")
    assert raised.value.error["code"] == "too_many_kernels"
    assert (await Executions(rest, other).run("print here"))["state"] == "ok"
    fail(far)
    await rest.delete(kernel_id)
    assert not is_alive(pid)
    assert [model["id"] for model in await rest.kernels()] == [other]
    await rest.start_kernel("far")


async def test_one_that_ends_after_all_is_gone_as_it_was_asked_to(
    rest: RestClient, far: Path
) -> None:
    deleted, restarted = [(await rest.start_kernel("far"))["id"] for _ in range(2)]
    pids = [await pid_of(rest, kernel_id) for kernel_id in (deleted, restarted)]
    fail(far, "raise", *UNSTOPPABLE)
    await asyncio.gather(refused(rest, "delete", deleted), refused(rest, "restart", restarted))
    assert await pid_of(rest, restarted) == pids[1]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)

    async def only_one() -> bool:
        return [model["id"] for model in await rest.kernels()] == [restarted]

    async def anew() -> bool:
        return bool((await Executions(rest, restarted).run("pid"))["outputs"])

    await eventually(only_one)
    await eventually(anew)
    assert await pid_of(rest, restarted) != pids[1]
    assert "reason" not in await rest.kernel(restarted)


async def test_what_is_sent_while_a_restart_fails_is_answered(rest: RestClient, far: Path) -> None:
    kernel_id = (await rest.start_kernel("far"))["id"]
    pid = await pid_of(rest, kernel_id)
    fail(far, "raise", *UNSTOPPABLE)
    restart = asyncio.create_task(refused(rest, "restart", kernel_id))
    await rest.wait_for_state(kernel_id, "restarting")
    sent = await Executions(rest, kernel_id).begin("pid")
    await restart
    ended = await Executions(rest, kernel_id).ended(sent)
    assert ended["outputs"][0]["text"] == f"{pid}\n"


@pytest.mark.parametrize("how", ["raise", "hang"])
async def test_a_process_that_cannot_be_polled_is_not_dead(
    servers: Servers, rest: RestClient, far: Path, how: str
) -> None:
    kernel_id = (await rest.start_kernel("far"))["id"]
    pid = await pid_of(rest, kernel_id)
    fail(far, how, "poll")

    async def is_shown(there: bool) -> bool:
        model = await rest.kernel(kernel_id)
        assert model["execution_state"] == "idle"
        return ("cannot be reached" in model.get("reason", "")) is there

    await eventually(lambda: is_shown(True), 30)
    assert await pid_of(rest, kernel_id) == pid
    fail(far)
    await eventually(lambda: is_shown(False), 30)
    assert await pid_of(rest, kernel_id) == pid
    assert servers.present is not None
    assert servers.present.output().count("cannot tell whether a kernel's process runs") == 1


@pytest.mark.parametrize("how", ["raise", "hang"])
async def test_code_that_cannot_be_interrupted_is_killed(
    rest: RestClient, far: Path, how: str
) -> None:
    kernel_id = (await rest.start_kernel("far"))["id"]
    pid = await pid_of(rest, kernel_id)
    fail(far, how, "send_signal")
    runs = Executions(rest, kernel_id)
    sent = await runs.begin("hang", timeout=0.5)
    ended = await runs.ended(sent)
    assert ended["state"] not in ("ok", "running")
    assert not is_alive(pid)
    pid = await pid_of(rest, kernel_id)
    sent = await runs.begin("hang")
    await runs.until(sent, "started")
    await rest.request(
        "POST", f"/api/kernels/{kernel_id}/executions/{sent}/cancel", json={"kill_after": 0.5}
    )
    await runs.ended(sent)
    assert not is_alive(pid)


async def test_an_interrupt_that_fails_is_told_to_who_asked(rest: RestClient, far: Path) -> None:
    kernel_id = (await rest.start_kernel("far"))["id"]
    runs = Executions(rest, kernel_id)
    sent = await runs.begin("sleep 60")
    await runs.until(sent, "started")
    fail(far, "raise", "send_signal")
    for path in ("interrupt", f"executions/{sent}/cancel"):
        with pytest.raises(RestError) as raised:
            await rest.request("POST", f"/api/kernels/{kernel_id}/{path}", 204)
        assert raised.value.status == 503
        assert raised.value.error["code"] == "kernel_unreachable"
    fail(far)
    await rest.interrupt(kernel_id)
    await runs.ended(sent)


async def test_a_launch_that_fails_behind_the_start_leaves_no_process(
    servers: Servers, rest: RestClient, far: Path
) -> None:
    fail(far, "raise", "post_launch")
    with pytest.raises(RestError) as raised:
        await rest.start_kernel("far")
    assert raised.value.error["code"] == "kernel_start_failed"
    assert await rest.kernels() == []
    assert fakes(servers) == []


async def test_one_whose_launch_fails_and_that_cannot_be_ended_stays_listed(
    servers: Servers, rest: RestClient, far: Path
) -> None:
    fail(far, "raise", "post_launch", *UNSTOPPABLE)
    with pytest.raises(RestError) as raised:
        await rest.start_kernel("far")
    assert raised.value.error["code"] == "kernel_start_failed"
    assert "could not be ended" in raised.value.error["message"]
    (model,) = await rest.kernels()
    assert model["execution_state"] == "unknown"
    assert "could not be ended" in model["reason"]
    assert len(fakes(servers)) == 1
    await refused(rest, "delete", model["id"])
    fail(far)
    await rest.delete(model["id"])
    assert fakes(servers) == []


def fakes(servers: Servers) -> list[int]:
    """The processes of far kernels."""
    found = []
    for process in servers.home.processes():
        if "run_fake.py" in " ".join(process.cmdline()):
            found.append(process.pid)
    return found


@pytest.mark.parametrize("how", ["raise", "hang"])
async def test_one_that_is_not_found_at_once_is_found_later(
    servers: Servers, far: Path, home: Home, how: str
) -> None:
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("far"))["id"]
        pid = await pid_of(rest, kernel_id)
    servers.crash()
    fail(far, how, "load")
    write_broken_kernelspec(home.jupyter_path, "far")
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        model = await rest.wait_for_state(kernel_id, "unknown", timeout=30)
        assert "could not be found again" in model["reason"]
        await refused(rest, "delete", kernel_id)
        await refused(rest, "restart", kernel_id)
        share = {"name": "ben", "access": "read"}
        await rest.request("POST", f"/api/kernels/{kernel_id}/shares", 201, json=share)
    servers.crash()
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        await rest.wait_for_state(kernel_id, "unknown", timeout=30)
        # What was shared while nobody reached the kernel: the next server knows it all the same.
        shares = await rest.request("GET", f"/api/kernels/{kernel_id}/shares")
        assert shares.json() == [share]
        assert (await rest.start_kernel("fake"))["id"]
        waiting = await Executions(rest, kernel_id).begin("pid")
        assert is_alive(pid)
        fail(far)
        ended = await Executions(rest, kernel_id).ended(waiting)
        assert ended["outputs"][0]["text"] == f"{pid}\n"
        assert "reason" not in await rest.wait_for_state(kernel_id, "idle")
        await rest.delete(kernel_id)
        assert not is_alive(pid)
        for model in await rest.kernels():
            await rest.delete(model["id"])
    await asyncio.to_thread(server.stop)
