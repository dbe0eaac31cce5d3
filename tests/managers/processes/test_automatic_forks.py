"""Kernels that are forked although nobody has asked: from the second start on, where it works."""

from __future__ import annotations

import asyncio
import json
import os
import site
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.managers.processes.forking import servers as forking
from app.managers.processes.forking.link import CannotFork, ForkLink, NotForkedYet, Order, Recipe
from app.managers.processes.forking.provisioner import read_once
from app.managers.processes.forking.servers import ForkServers
from app.managers.processes.keeper.client import Keeper
from tests.conftest import MakeServer
from tests.support.drill import Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_SPECS, Spec
from tests.support.processes import eventually, is_fork_server
from tests.support.rest import RestClient
from tests.support.running import RunningKernel, kernels_of
from tests.support.server import ServerProcess

WAIT = 60  # seconds

MODES = ("stop", "keep")


async def run(kernel: RunningKernel, code: str) -> Any:
    """What ``code`` leaves in ``result``, by way of JSON."""
    code = f"import json\n{code}\nprint(json.dumps(result))"
    return json.loads((await kernel.channels.execute(code)).text)


async def is_forked(kernel: RunningKernel) -> bool:
    pid = await run(kernel, "import os; result = os.getpid()")
    return "fork_server.py" in " ".join(psutil.Process(pid).cmdline())


def fork_servers(home: Home) -> list[psutil.Process]:
    return [process for process in home.processes() if is_fork_server(process)]


async def fork_server_comes(server: ServerProcess, count: int = 1) -> None:
    """Returns when so many fork servers have been ready."""
    await eventually(lambda: server.output().count(" is ready\n") >= count, WAIT)


def environment(path: Path) -> tuple[Path, Spec]:
    """An interpreter with packages of its own, beside ours: where they are, and its kernelspec."""
    command = (sys.executable, "-m", "venv", "--without-pip", str(path))
    subprocess.run(command, check=True, capture_output=True, timeout=WAIT)
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    packages = path / "lib" / version / "site-packages"
    (packages / "ours.pth").write_text("\n".join(site.getsitepackages()))
    interpreter = str(path / "bin" / "python")
    argv = (interpreter, "-m", "ipykernel_launcher", "-f", "{connection_file}")
    return packages, Spec(argv=argv, fields={"language": "python"})


@pytest.mark.parametrize("mode", MODES)
async def test_the_second_start_is_forked_and_so_is_the_restart_of_the_first(
    make_server: MakeServer, mode: str
) -> None:
    server = make_server("--on-shutdown", mode)
    async with kernels_of(server) as start:
        first = await start("python3")
        assert not await is_forked(first)
        await fork_server_comes(server)
        second = await start("python3", env={"MINE": "1"})
        assert await is_forked(second)
        assert await run(second, "import os; result = os.environ['MINE']") == "1"
        await start.rest.restart(first.id)
        await first.told("idle")
        assert await is_forked(first)
        assert len(fork_servers(server.home)) == 1
        # Nobody is told why what cannot be known yet is not done.
        assert "not forked but started" not in server.output()


async def test_none_forks_nothing(make_server: MakeServer) -> None:
    server = make_server("--fork-kernels", "none")
    async with kernels_of(server) as start:
        for _ in range(2):
            assert not await is_forked(await start("python3"))
        assert fork_servers(server.home) == []


async def test_what_cannot_be_forked_is_started_and_the_log_says_why_once(
    make_server: MakeServer,
) -> None:
    local = {"kernel_provisioner": {"provisioner_name": "local-provisioner"}}
    argv = (sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}")
    own = Spec(argv=argv, metadata=local, fields={"language": "python"})
    server = make_server(specs={**FAKE_SPECS, "own": own})
    async with kernels_of(server) as start:
        await start("python3")
        await fork_server_comes(server)
        for _ in range(2):
            other = await start("python3", env={"PYTHONHASHSEED": "7"})
            assert not await is_forked(other)
            assert await run(other, "import os; result = os.environ['PYTHONHASHSEED']") == "7"
            assert (await (await start("fake")).model())["execution_state"] == "idle"
            assert not await is_forked(await start("own"))
        said = [line for line in server.output().splitlines() if "not forked but started" in line]
        assert sorted(line.rpartition("kernels of ")[2] for line in said) == [
            "fake are not forked but started: its command is not /path/to/python -m "
            "ipykernel_launcher",
            "python3 are not forked but started: its environment has another PYTHONHASHSEED",
        ]


async def test_what_was_installed_meanwhile_is_there_in_the_next_kernel(
    make_server: MakeServer, tmp_path: Path
) -> None:
    packages, spec = environment(tmp_path / "env")
    server = make_server(specs={"env": spec})
    async with kernels_of(server) as start:
        await start("env")
        await fork_server_comes(server)
        before = await start("env")
        assert await is_forked(before)
        (outdated,) = fork_servers(server.home)

        # As pip installs what is edited elsewhere: only an interpreter that starts reads this.
        (tmp_path / "edited").mkdir()
        (tmp_path / "edited" / "late_module.py").write_text("VALUE = 5\n")
        (packages / "late.pth").write_text(str(tmp_path / "edited"))
        imports = "import late_module; result = late_module.VALUE"
        after = await start("env")
        assert not await is_forked(after)
        assert await run(after, imports) == 5
        await fork_server_comes(server, 2)
        forked = await start("env")
        assert await is_forked(forked)
        assert await run(forked, imports) == 5

        # Who has forked a kernel still tells how that ends, and then ends too.
        mark = server.mark()
        exchange = await before.channels.execute("import os; os._exit(3)")
        assert "exited with code 3" in exchange.error["evalue"]
        await eventually(lambda: "exited with code 3" in server.output(mark))
        await before.told("idle")
        assert await is_forked(before)
        await eventually(lambda: not outdated.is_running(), WAIT)
        assert len(fork_servers(server.home)) == 1
        assert "has ended; its kernels go on" not in server.output()


FATAL = """
import os

def in_child():
    from ipykernel.kernelapp import IPKernelApp
    IPKernelApp.init_kernel = lambda self: os._exit(7)

os.register_at_fork(after_in_child=in_child)
"""


async def test_what_works_only_when_it_is_started_is_started(
    make_server: MakeServer, tmp_path: Path
) -> None:
    packages, spec = environment(tmp_path / "env")
    (packages / "fatal.py").write_text(FATAL)
    (packages / "fatal.pth").write_text("import fatal\n")
    server = make_server("--on-shutdown", "keep", specs={"env": spec})
    async with kernels_of(server) as start:
        await start("env")
        await fork_server_comes(server)
        for _ in range(2):
            kernel = await start("env")
            assert not await is_forked(kernel)
        output = server.output()
        assert output.count("starting it without forking it") == 1
        assert output.count("kernels are not forked but started: ") == 1
        await eventually(lambda: fork_servers(server.home) == [], WAIT)


async def test_kernels_are_adopted_by_a_server_that_forks_otherwise(home: Home) -> None:
    servers = Servers(home, "--on-shutdown", "keep")
    try:
        server = await asyncio.to_thread(servers.start)
        async with RestClient(server.url, server.token) as rest:
            kernels = []
            for _ in range(2):
                kernels.append((await rest.start_kernel("python3"))["id"])
                await Executions(rest, kernels[-1]).run("kept = 5")
                await fork_server_comes(server)
        for option in ("none", "python3", "auto"):
            servers.crash()
            servers.arguments = ("--on-shutdown", "keep", "--fork-kernels", option)
            server = await asyncio.to_thread(servers.start)
            async with RestClient(server.url, server.token) as rest:
                for kernel in kernels:
                    run = await Executions(rest, kernel).run("print(kept)")
                    assert run["outputs"][0]["text"] == "5\n"
                    await rest.restart(kernel)
                    await Executions(rest, kernel).run("kept = 5")
            assert "another provisioner" not in server.output()
        async with RestClient(server.url, server.token) as rest:
            await asyncio.gather(*map(rest.delete, kernels))
        await asyncio.to_thread(servers.terminate)
        await eventually(lambda: not home.processes(), WAIT)
    finally:
        if servers.present is not None:
            servers.present.crash()


class Forks:
    """Fork servers that are not a service's, and orders for them; what is forked does not begin."""

    def __init__(self, home: Home, keeper: Keeper, output: int, leave: int) -> None:
        self.servers = ForkServers(keeper, idle_seconds=1.0)
        self._env = home.environment()
        where = str(home.root_dir)
        self.order = Order(["kernel"], ["-f", "none"], self._env, where, output, {}, leave)

    def recipe(self, number: int = 0) -> Recipe:
        """One of several."""
        env = {**self._env, "PYTHONHASHSEED": str(number)}
        return Recipe((sys.executable,), (), read_once(env, ()))

    async def fork(self, recipe: Recipe, *, asked: bool = False) -> ForkLink:
        """Fork a process as soon as there is a server for it; that server."""
        while True:
            try:
                await self.servers.fork(recipe, self.order, asked=asked)
                return self.servers._families[recipe].living()[0]
            except NotForkedYet:
                self.servers.bring_up(recipe)
                await asyncio.sleep(0.05)


@pytest.fixture
async def forks(home: Home) -> AsyncIterator[Forks]:
    output = os.open(os.devnull, os.O_WRONLY)
    reads, writes = os.pipe()
    keeper = Keeper(home.state_dir, orphan_timeout=None)
    forks = Forks(home, keeper, output, reads)
    yield forks
    for descriptor in (output, reads, writes):
        os.close(descriptor)
    await forks.servers.close()
    await keeper.close()


async def test_starts_at_once_wait_for_the_fork_server_that_is_about_to_be_ready(
    forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forking, "LOADING_SECONDS", 0)
    recipe = forks.recipe()
    forks.servers.bring_up(recipe)
    with pytest.raises(NotForkedYet, match="not ready yet"):
        await forks.servers.fork(recipe, forks.order, asked=False)
    monkeypatch.setattr(forking, "LOADING_SECONDS", WAIT)
    starts = (forks.servers.fork(recipe, forks.order, asked=False) for _ in range(3))
    assert len({*await asyncio.gather(*starts)}) == 3
    assert len(forks.servers._families[recipe].servers) == 1


async def test_a_fork_server_that_nobody_has_asked_for_ends_when_it_has_nothing_to_do(
    forks: Forks, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    recipe = forks.recipe()
    with pytest.raises(NotForkedYet):
        await forks.servers.fork(recipe, forks.order, asked=False)
    link = await forks.fork(recipe)
    async with asyncio.timeout(WAIT):
        await asyncio.shield(link.ended)
    await eventually(lambda: not psutil.pid_exists(link.pid or 0), WAIT)
    assert "it has nothing to do" in caplog.text
    assert "its kernels go on" not in caplog.text
    with pytest.raises(NotForkedYet):
        await forks.servers.fork(recipe, forks.order, asked=False)

    link = await forks.fork(recipe, asked=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2):
            await asyncio.shield(link.ended)


async def test_their_number_is_bounded_and_those_that_have_ended_make_room(
    forks: Forks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forking, "MAX_RECIPES", 2)
    forks.servers._idle_seconds = WAIT
    links = []
    for number in range(2):
        links.append(await forks.fork(forks.recipe(number)))
    with pytest.raises(CannotFork, match="for 2 kinds of kernels already"):
        await forks.servers.fork(forks.recipe(2), forks.order, asked=False)
    forks.servers.bring_up(forks.recipe(2))
    with pytest.raises(CannotFork, match="already"):
        await forks.servers.fork(forks.recipe(2), forks.order, asked=False)
    for link in links:
        link.retire()
    async with asyncio.timeout(WAIT):
        await asyncio.wait({link.ended for link in links})
    await forks.fork(forks.recipe(2))


async def test_kernels_do_not_come_up_forked_and_are_started_for_a_while(forks: Forks) -> None:
    recipe = forks.recipe()
    link = await forks.fork(recipe)
    forks.servers.give_up(recipe, "they do not come up")
    with pytest.raises(CannotFork, match="they do not come up") as raised:
        await forks.servers.fork(recipe, forks.order, asked=False)
    assert not isinstance(raised.value, NotForkedYet)
    async with asyncio.timeout(WAIT):
        await asyncio.shield(link.ended)

    async def is_tried_again() -> bool:
        try:
            await forks.servers.fork(recipe, forks.order, asked=False)
        except NotForkedYet:
            return True
        except CannotFork:
            return False
        return False

    await eventually(is_tried_again, WAIT)
