"""A server of another version comes: kernels stay with the keeper that has them."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from app.keeper.protocol import PROTOCOL, aside_dirs
from tests.support.drill import KEEP, Servers, drill
from tests.support.executions import Executions
from tests.support.external import external_kernel
from tests.support.home import Home
from tests.support.processes import eventually, is_alive, keepers
from tests.support.rest import RestClient
from tests.support.server import ServerProcess, run_server
from tests.support.versions import server_of

WAIT = 30  # seconds
FORK = ("--on-shutdown", "keep", "--fork-kernels", "auto")


def use(servers: Servers, version: int) -> None:
    """The next server is of this version of the protocol."""
    servers.kind = ServerProcess if version == PROTOCOL else server_of(version)


async def process_of(rest: RestClient, kernel_id: str) -> psutil.Process:
    """The process of a fake kernel."""
    ran = await Executions(rest, kernel_id).run("pid")
    return psutil.Process(int(ran["outputs"][0]["text"]))


async def start(servers: Servers, version: int) -> ServerProcess:
    use(servers, version)
    return await asyncio.to_thread(servers.start)


class Left(NamedTuple):
    """A fake kernel that a server of another version has left, its process and its keeper."""

    kernel_id: str
    process: psutil.Process
    keeper: psutil.Process


async def leave(servers: Servers, version: int) -> Left:
    """A kernel that is started by a server of this version, which is then killed."""
    server = await start(servers, version)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake"))["id"]
        process = await process_of(rest, kernel_id)
    servers.crash()
    return Left(kernel_id, process, only_keeper(servers.home))


async def lost(rest: RestClient, kernel_id: str) -> int:
    """How many messages of a kernel's log are announced as lost."""
    path, messages, page = f"/api/kernels/{kernel_id}/messages", 0, {"next": 0, "last": 1}
    while page["next"] < page["last"]:
        query = {"after": page["next"], "limit": 1000}
        page = (await rest.request("GET", path, params=query)).json()
        messages += page["gap"]["messages"] if page["gap"] is not None else 0
    return messages


def only_keeper(home: Home) -> psutil.Process:
    (keeper,) = keepers(home.processes())
    return keeper


async def test_an_upgrade_under_output_costs_nobody_anything(home: Home) -> None:
    servers = Servers(home, kind=server_of(PROTOCOL - 1))
    await drill(servers, kernels=3, count=1500, rate=1000, after=0.5, end="upgrade")
    assert not home.processes()
    assert aside_dirs(home.state_dir) == []


async def test_kernels_stay_with_the_older_keeper_and_new_ones_get_the_newest(
    servers: Servers, home: Home
) -> None:
    await start(servers, PROTOCOL - 1)
    server = servers.present
    assert server is not None
    async with RestClient(server.url, server.token) as rest:
        first, second = [(await rest.start_kernel("fake"))["id"] for _ in range(2)]
        processes = [await process_of(rest, kernel_id) for kernel_id in (first, second)]
        prompted = await Executions(rest, second).begin("sleep 60")
        await Executions(rest, second).until(prompted, "started")
    older = only_keeper(home)
    servers.crash()
    server = await start(servers, PROTOCOL)
    async with RestClient(server.url, server.token) as rest:
        assert await process_of(rest, first) == processes[0]
        (newest,) = [keeper for keeper in keepers(home.processes()) if keeper != older]
        await rest.interrupt(second)
        assert (await Executions(rest, second).ended(prompted))["state"] == "error"
        assert [await lost(rest, kernel_id) for kernel_id in (first, second)] == [0, 0]

        third = (await rest.start_kernel("fake"))["id"]
        assert (await process_of(rest, third)).ppid() == newest.pid
        # A restart goes to the same keeper, which knows how the new process ends.
        await rest.restart(first)
        again = await process_of(rest, first)
        assert (again != processes[0], again.ppid()) == (True, older.pid)
        again.send_signal(signal.SIGSEGV)
        await eventually(lambda: "killed by signal 11 (SIGSEGV)" in server.output(), WAIT)
        assert (await process_of(rest, first)).ppid() == older.pid

        await rest.delete(first)
        assert older.is_running()
        assert await process_of(rest, second) == processes[1]
        await rest.delete(second)
        await eventually(lambda: not is_alive(older.pid), WAIT)
        await eventually(lambda: aside_dirs(home.state_dir) == [], WAIT)
        await eventually(lambda: "ended with its last kernel" in server.output(), WAIT)
        assert (await process_of(rest, third)).ppid() == newest.pid
        await rest.delete(third)
    await asyncio.to_thread(server.stop)


async def test_the_next_server_finds_both_keepers_and_ends_what_nobody_knows(
    servers: Servers, home: Home
) -> None:
    old, process, older = await leave(servers, PROTOCOL - 1)
    server = await start(servers, PROTOCOL)
    async with RestClient(server.url, server.token) as rest:
        new = (await rest.start_kernel("fake"))["id"]
        begun = {
            kernel_id: await Executions(rest, kernel_id).begin("flood 400 20 400")
            for kernel_id in (old, new)
        }
        for kernel_id, run in begun.items():
            await Executions(rest, kernel_id).until(run, "stream")
    servers.crash()
    server = await start(servers, PROTOCOL)
    async with RestClient(server.url, server.token) as rest:
        for kernel_id, run in begun.items():
            ended = await Executions(rest, kernel_id).ended(run)
            text = "".join(output["text"] for output in ended["outputs"])
            numbers = [int(line.split()[0]) for line in text.splitlines()]
            assert (ended["state"], numbers) == ("ok", [*range(1, 401)])
        assert await process_of(rest, old) == process
        assert process.ppid() == older.pid
        assert len(keepers(home.processes())) == 2
    servers.crash()
    stopped = await asyncio.to_thread(
        run_server, "kernels", "stop", "--all", "--state-dir", str(home.state_dir), home=home
    )
    assert (stopped.returncode, stopped.stderr) == (0, "")
    await eventually(lambda: not home.processes(), WAIT)
    # What that has left is gone with the next server.
    server = await start(servers, PROTOCOL)
    assert aside_dirs(home.state_dir) == []
    await asyncio.to_thread(server.stop)


@pytest.mark.parametrize("there", [True, False], ids=["with a server", "without"])
async def test_kernels_of_an_older_keeper_that_is_killed_live_on(
    servers: Servers, home: Home, there: bool
) -> None:
    kernel_id, process, older = await leave(servers, PROTOCOL - 1)
    server = await start(servers, PROTOCOL)
    if not there:
        servers.crash()
    older.kill()
    await eventually(lambda: not is_alive(older.pid), WAIT)
    if not there:
        server = await start(servers, PROTOCOL)
    async with RestClient(server.url, server.token) as rest:
        await eventually(lambda: aside_dirs(home.state_dir) == [], WAIT)
        assert await process_of(rest, kernel_id) == process
        assert await lost(rest, kernel_id) == 64
        only_keeper(home)
        process.kill()
        await eventually(lambda: "ended; how is not known" in server.output(), WAIT)
        assert (await process_of(rest, kernel_id)).ppid() == only_keeper(home).pid
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


@pytest.mark.parametrize("steps", [[1, 0], [-2, 0], [-1, 0, 1]], ids=["back", "on", "on and on"])
async def test_a_keeper_that_is_not_spoken_to_lets_go_of_its_kernels(
    servers: Servers, steps: list[int]
) -> None:
    """The first server is left alone with its keeper; the last does not speak its version."""
    kernel_id, process, first = await leave(servers, PROTOCOL + steps[0])
    for step in steps[1:-1]:
        await start(servers, PROTOCOL + step)
        servers.crash()
    server = await start(servers, PROTOCOL + steps[-1])
    async with RestClient(server.url, server.token) as rest:
        versions = f"({PROTOCOL + steps[0]}, not {PROTOCOL + steps[-1]})"
        drained = [line for line in server.output().splitlines() if "of another version" in line]
        assert len(drained) == 1
        assert versions in drained[0]
        await eventually(lambda: not is_alive(first.pid), WAIT)
        assert await process_of(rest, kernel_id) == process
        assert await lost(rest, kernel_id) == 64
        await rest.delete(kernel_id)
    await asyncio.to_thread(server.stop)


async def test_a_kernel_of_somebody_elses_stays_with_the_keeper_that_hears_it(
    servers: Servers, home: Home
) -> None:
    file = Path(home.path / "theirs" / "kernel.json")
    external = ("--allow-external-kernels", "--external-connection-dir", str(file.parent))
    servers.arguments = (*KEEP, *external)
    async with external_kernel(home, file):
        server = await start(servers, PROTOCOL - 1)
        async with RestClient(server.url, server.token) as rest:
            body = {"connection_file": str(file)}
            kernel_id = (await rest.request("POST", "/api/kernels", 201, json=body)).json()["id"]
            await rest.wait_for_state(kernel_id, "idle")
            await Executions(rest, kernel_id).run("kept = 5")
        older = only_keeper(home)
        servers.crash()
        server = await start(servers, PROTOCOL)
        async with RestClient(server.url, server.token) as rest:
            await rest.wait_for_state(kernel_id, "idle")
            ran = await Executions(rest, kernel_id).run("print(kept)")
            assert ran["outputs"][0]["text"] == "5\n"
            assert await lost(rest, kernel_id) == 0
            assert older.is_running()
            await rest.delete(kernel_id)
            await eventually(lambda: not is_alive(older.pid), WAIT)
        await asyncio.to_thread(servers.terminate)


async def test_a_kernel_of_an_older_keeper_is_not_forked_when_it_is_restarted(
    servers: Servers, home: Home
) -> None:
    servers.arguments = FORK
    server = await start(servers, PROTOCOL - 1)
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("python3"))["id"]
        await rest.wait_for_state(kernel_id, "idle")
    older = only_keeper(home)
    servers.crash()
    server = await start(servers, PROTOCOL)
    async with RestClient(server.url, server.token) as rest:
        other = (await rest.start_kernel("python3"))["id"]
        await rest.wait_for_state(other, "idle")
        await eventually(lambda: "fork server" in server.output(), WAIT)
        await rest.restart(kernel_id)
        code = "import os; print(os.getppid())"
        ran = await Executions(rest, kernel_id).run(code)
        assert int(ran["outputs"][0]["text"]) == older.pid
        assert "its keeper is of the version before" in server.output()
        ended = await Executions(rest, kernel_id).begin("os._exit(9)")
        assert (await Executions(rest, kernel_id).ended(ended))["state"] == "lost"
        await eventually(lambda: "exited with code 9" in server.output(), WAIT)
        await asyncio.gather(rest.delete(kernel_id), rest.delete(other))
    await asyncio.to_thread(server.stop)


async def test_an_older_keeper_that_hangs_costs_new_kernels_nothing(servers: Servers) -> None:
    kernel_id, process, older = await leave(servers, PROTOCOL - 1)
    await start(servers, PROTOCOL)
    servers.crash()
    older.suspend()
    try:
        server = await start(servers, PROTOCOL)
        async with RestClient(server.url, server.token) as rest:
            assert (await rest.kernel(kernel_id))["execution_state"] == "unknown"
            async with asyncio.timeout(5):
                new = (await rest.start_kernel("fake"))["id"]
                assert (await process_of(rest, new)).ppid() != older.pid
            os.kill(older.pid, signal.SIGCONT)
            await rest.wait_for_state(kernel_id, "idle")
            assert await process_of(rest, kernel_id) == process
            assert await lost(rest, kernel_id) == 0
            await asyncio.gather(rest.delete(kernel_id), rest.delete(new))
        await asyncio.to_thread(server.stop)
    finally:
        if older.is_running():
            older.resume()
