"""``on_shutdown=stop``: whatever ends the server, its kernels and its files go with it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path

import psutil

from tests.conftest import MakeServer
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_SPECS, Spec
from tests.support.processes import eventually, is_alive, keepers, kill_all
from tests.support.rest import RestClient
from tests.support.running import kernels_of
from tests.support.server import ServerProcess

WAIT = 60  # seconds


def runs(home: Home) -> list[Path]:
    """The directories of servers."""
    return [*(home.state_dir / "run").iterdir()]


async def nothing_is_left(home: Home) -> None:
    await eventually(lambda: not home.processes(), WAIT)
    assert runs(home) == []
    assert home.leftovers() == []
    # What the next one may use: which transports work.
    assert {path.name for path in home.state_dir.iterdir()} <= {"run", "transports.json"}


async def test_a_server_that_is_killed_leaves_neither_kernels_nor_files(
    make_server: MakeServer, home: Home
) -> None:
    stubborn = Spec(flags=("--ignore-shutdown", "--ignore-sigterm"))
    server = make_server(home=home, specs={**FAKE_SPECS, "stubborn": stubborn})
    async with kernels_of(server) as start:
        python = await start("python3")
        said = home.root_dir / "said"
        at_exit = f"import atexit; atexit.register(lambda: open({str(said)!r}, 'w').close())"
        await python.channels.execute(at_exit)
        busy, _ = await start("fake"), await start("stubborn")
        await busy.begins("print on; sleep 1000")
        start.started.clear()
        server.crash()
    await nothing_is_left(home)
    assert said.exists()  # it was asked, and has ended by itself


async def test_one_that_ends_leaves_nothing_either(make_server: MakeServer, home: Home) -> None:
    server = make_server(home=home)
    async with RestClient(server.url, server.token) as rest:
        for _ in range(2):
            await rest.start_kernel("fake")  # which need not have come up
    await asyncio.to_thread(server.stop)
    await nothing_is_left(home)


async def test_servers_that_share_a_state_directory_do_not_meet(
    make_server: MakeServer, home: Home
) -> None:
    first, second = make_server(home=home), make_server(home=home)
    async with kernels_of(first) as start, kernels_of(second) as start_other:
        await start("fake")
        kernel = await start_other("fake")
        pid = await kernel.pid()
        assert len(runs(home)) == len(keepers(home.processes())) == 2
        start.started.clear()
        first.crash()
        await eventually(lambda: len(runs(home)) == len(keepers(home.processes())) == 1, WAIT)
        assert await kernel.pid() == pid
        third = make_server(home=home)
        async with kernels_of(third) as start_third:
            await start_third("fake")
            assert await kernel.pid() == pid
        third.send_signal(signal.SIGTERM)
        await asyncio.to_thread(third.wait)
        assert await kernel.pid() == pid
    await asyncio.to_thread(second.stop)
    await nothing_is_left(home)


async def after_the_keeper(server: ServerProcess, end: Callable[[], None]) -> None:
    """Kill the keeper of a server, see its kernel go on, and end the server."""
    async with kernels_of(server) as start:
        kernel = await start("fake")
        pid = await kernel.pid()
        (killed,) = keepers(server.home.processes())
        killed.kill()

        def another() -> psutil.Process | None:
            found = [keeper for keeper in keepers(server.home.processes()) if keeper != killed]
            return found[0] if found else None

        keeper = await eventually(another)
        assert await kernel.pid() == pid
        other = await start("fake")
        assert keeper is not None
        assert psutil.Process(await other.pid()).ppid() == keeper.pid
        start.started.clear()
        await asyncio.to_thread(end)


async def test_kernels_end_with_the_server_after_their_keeper_was_killed(
    make_server: MakeServer, home: Home
) -> None:
    server = make_server(home=home)
    await after_the_keeper(server, server.stop)
    await nothing_is_left(home)
    server = make_server(home=home)
    await after_the_keeper(server, server.crash)
    await nothing_is_left(home)


async def test_what_is_left_when_both_are_killed_the_next_server_clears_away(
    make_server: MakeServer, home: Home
) -> None:
    server = make_server(home=home)
    async with kernels_of(server) as start:
        kernel = await start("fake")
        pid = await kernel.pid()
        start.started.clear()
        (keeper,) = keepers(home.processes())
        server.send_signal(signal.SIGSTOP)  # so that it starts no other
        kill_all([keeper])
        server.crash()
    assert is_alive(pid)
    (left,) = runs(home)
    next_one = make_server(home=home)
    await eventually(lambda: not is_alive(pid), WAIT)
    assert not left.exists()
    await asyncio.to_thread(next_one.stop)
    await nothing_is_left(home)
