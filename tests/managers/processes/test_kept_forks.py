"""Forked kernels that outlive the server, and their fork server."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator

import psutil
import pytest

from app.keeper.output import lasting_pipe
from app.managers.processes.forking.link import Order, Recipe
from app.managers.processes.forking.provisioner import read_once
from app.managers.processes.forking.servers import ForkServers
from tests.keeper.conftest import connected
from tests.support.drill import Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.metrics import scrape
from tests.support.processes import eventually, is_alive, keepers
from tests.support.rest import RestClient

FORK = ("--on-shutdown", "keep", "--fork-kernels", "python3")
WAIT = 60


@pytest.fixture
def servers(home: Home) -> Iterator[Servers]:
    """Servers that fork kernels and keep them, one after the other."""
    servers = Servers(home, *FORK)
    yield servers
    if servers.present is not None:
        servers.present.crash()


async def process_of(rest: RestClient, kernel_id: str) -> psutil.Process:
    run = await Executions(rest, kernel_id).run("import os; print(os.getpid())")
    return psutil.Process(int(run["outputs"][0]["text"]))


def is_forked(process: psutil.Process) -> bool:
    """A forked process has the command line of its fork server."""
    return "fork_server.py" in " ".join(process.cmdline())


def fork_servers(home: Home) -> list[psutil.Process]:
    """Unlike kernels they work nowhere."""
    return [p for p in home.processes() if is_forked(p) and p.cwd() == "/"]


def keeper_of(home: Home) -> psutil.Process:
    (keeper,) = keepers(home.processes())
    return keeper


COUNT = """
import os, time
kept = 5
for number in range(1, 301):
    print(number, flush=True)
    time.sleep(0.005)
written = os.write(1, b"counted\\n")
"""

END = """
import os, time
print("begun", flush=True)
while not os.path.exists("go"):
    time.sleep(0.01)
os._exit(3)
"""


async def test_they_outlive_the_server_and_then_their_fork_server(
    servers: Servers, home: Home
) -> None:
    servers.arguments = (*FORK, "--warm-kernels", "python3=1")
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:

        async def parked() -> bool:
            return (await scrape(rest))("kernelkeep_warm_kernels", type="python3") >= 1

        await eventually(parked, WAIT)
        warm = await rest.start_kernel("python3")
        assert warm["execution_state"] == "idle"
        counting, ending = warm["id"], (await rest.start_kernel("python3"))["id"]
        await rest.wait_for_state(ending, "idle", timeout=WAIT)
        processes = [await process_of(rest, kernel_id) for kernel_id in (counting, ending)]
        keeper = keeper_of(home)
        assert [(is_forked(p), p.ppid(), os.getsid(p.pid)) for p in processes] == [
            (True, keeper.pid, p.pid) for p in processes
        ]
        counted = await Executions(rest, counting).begin(COUNT)
        await Executions(rest, counting).until(counted, "stream")
        ended = await Executions(rest, ending).begin(END)
        await Executions(rest, ending).until(ended, "stream")
    servers.crash()
    (home.root_dir / "go").touch()
    await eventually(lambda: not is_alive(processes[1].pid), WAIT)
    await eventually(lambda: not fork_servers(home), WAIT)

    servers.arguments = FORK
    server = await asyncio.to_thread(servers.start)
    async with RestClient(server.url, server.token) as rest:
        died = await rest.kernel(ending)
        assert (died["execution_state"], "exited with code 3" in died["reason"]) == ("dead", True)
        assert (await Executions(rest, ending).get(ended))["state"] == "lost"

        runs = Executions(rest, counting)
        found = await runs.ended(counted)
        text = "".join(output["text"] for output in found["outputs"])
        assert (found["state"], text.split()[:300]) == ("ok", [str(n) for n in range(1, 301)])
        output = home.state_dir / "output" / f"kernel-{counting}.log"
        await eventually(lambda: output.exists() and "counted" in output.read_text(), WAIT)

        sleeping = await runs.begin("import time; print('on', flush=True); time.sleep(100)")
        await runs.until(sleeping, "stream")
        await rest.interrupt(counting)
        assert (await runs.ended(sleeping))["state"] == "error"
        assert (await runs.run("print(kept)"))["outputs"][0]["text"] == "5\n"
        assert await process_of(rest, counting) == processes[0]

        await rest.restart(counting)
        again = await process_of(rest, counting)
        assert (is_forked(again), again.ppid()) == (True, keeper.pid)
        await runs.run("kept = 6")

        await eventually(lambda: len(fork_servers(home)) == 2, WAIT)
        for process in fork_servers(home):
            process.kill()
        await eventually(lambda: "its kernels go on" in server.output(), WAIT)
        assert (await runs.run("print(kept)"))["outputs"][0]["text"] == "6\n"
        other = (await rest.start_kernel("python3"))["id"]
        process = await process_of(rest, other)
        assert (is_forked(process), process.ppid()) == (False, keeper.pid)
        again.send_signal(signal.SIGKILL)
        await eventually(lambda: "killed by signal 9 (SIGKILL)" in server.output(), WAIT)
        await rest.delete(other)
        assert not is_alive(process.pid)
        await asyncio.gather(rest.delete(counting), rest.delete(ending))
    await asyncio.to_thread(server.stop)
    await eventually(lambda: not home.processes(), WAIT)


async def test_one_that_the_keeper_does_not_know_ends_when_the_server_does(home: Home) -> None:
    (home.state_dir / "output").mkdir(mode=0o700)
    keeper = await connected(home.state_dir, orphan_timeout=3600)
    forks = ForkServers(keeper)
    env = home.environment()
    output = lasting_pipe(home.state_dir / "output" / "k.log")
    reads, writes = os.pipe()
    try:
        recipe = Recipe((sys.executable,), (), read_once(env, ()))
        order = Order(["kernel"], ["-f", "none"], env, str(home.root_dir), output, {}, reads)
        async with asyncio.timeout(WAIT):
            pid = await forks.fork(recipe, order)
        process = psutil.Process(pid)
        await eventually(lambda: process.cmdline() and process.ppid() == keeper.pid, WAIT)
        assert is_alive(pid)
    finally:
        for descriptor in (reads, writes, output):
            os.close(descriptor)
    # It was reaped, too: there is no zombie.
    await eventually(lambda: not psutil.pid_exists(pid), WAIT)
    await forks.close()
    await keeper.close()
