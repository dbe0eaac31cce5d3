"""``kernelkeep kernels``: what it ends, what it leaves, and what it says of a wrong option."""

from __future__ import annotations

import asyncio
import time
from subprocess import CompletedProcess

import pytest

from tests.support.commands import Commands
from tests.support.drill import Servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.processes import eventually, is_alive, keepers
from tests.support.registry import open_registry
from tests.support.rest import RestClient
from tests.support.server import run_server

SECONDS = 10  # in which a keeper with nothing to keep has ended, on a busy machine too


async def command(home: Home, *arguments: str) -> CompletedProcess[str]:
    """``kernelkeep kernels ...`` for the state directory of ``home``."""
    state_dir = ("--state-dir", str(home.state_dir))
    return await asyncio.to_thread(run_server, "kernels", *arguments, *state_dir, home=home)


async def left_alone(servers: Servers, count: int) -> dict[str, int]:
    """The ids and processes of kernels whose server was killed."""
    server = await asyncio.to_thread(servers.start)
    kernels = {}
    async with RestClient(server.url, server.token) as rest:
        for _ in range(count):
            kernel_id = (await rest.start_kernel("fake"))["id"]
            ran = await Executions(rest, kernel_id).run("pid")
            kernels[kernel_id] = int(ran["outputs"][0]["text"])
    servers.crash()
    return kernels


def change(home: Home, statement: str, kernel_id: str) -> None:
    """Change the row of a kernel in the registry."""
    with open_registry(home.state_dir) as connection:
        connection.execute(statement, (kernel_id,))


async def test_the_keeper_ends_with_the_last_kernel_that_is_stopped(
    servers: Servers, home: Home
) -> None:
    kernels = await left_alone(servers, 3)
    (keeper,) = keepers(home.processes())
    dead, first, second = kernels
    change(home, "DELETE FROM kernel WHERE id = ?", second)
    await eventually(lambda: keeper.is_running())
    (process,) = [each for each in keeper.children() if each.pid == kernels[dead]]
    process.kill()
    await eventually(lambda: not is_alive(process.pid))

    stopped = await command(home, "stop", first)
    assert (stopped.returncode, stopped.stderr) == (0, "")
    assert [is_alive(pid) for pid in kernels.values()] == [False, False, True]
    assert keeper.is_running()

    # One that has died, and one that is on no list.
    stopped = await command(home, "stop", "--all")
    assert (stopped.returncode, stopped.stderr) == (0, "")
    await eventually(lambda: not home.processes(), SECONDS)


async def test_one_that_cannot_be_ended_keeps_none_of_the_others(
    servers: Servers, home: Home
) -> None:
    kernels = await left_alone(servers, 3)
    elsewhere = sorted(kernels)[0]
    change(home, "UPDATE kernel SET pid = NULL WHERE id = ?", elsewhere)
    ids = [elsewhere, *kernels.keys() - {elsewhere}]
    stopped = await command(home, "stop", *ids)
    assert stopped.returncode == 1
    assert stopped.stderr == (
        f"kernelkeep: kernel {elsewhere} runs elsewhere: only a server can end it\n"
    )
    assert {kernel_id for kernel_id, pid in kernels.items() if is_alive(pid)} == {elsewhere}


async def test_a_keeper_that_hangs_holds_up_no_stop_for_long_and_is_told_of(
    servers: Servers, home: Home
) -> None:
    kernels = await left_alone(servers, 1)
    (keeper,) = keepers(home.processes())
    keeper.suspend()
    began = time.monotonic()
    stopped = await command(home, "stop", "--all")
    assert time.monotonic() - began < 30
    assert stopped.returncode == 1
    (line,) = stopped.stderr.splitlines()
    assert line.startswith("kernelkeep: the keeper of these kernels goes on: ")
    assert not any(map(is_alive, kernels.values()))
    keeper.resume()
    again = await command(home, "stop", "--all")
    assert (again.returncode, again.stderr) == (0, "")
    await eventually(lambda: not home.processes(), SECONDS)


@pytest.mark.parametrize("arguments", [("list",), ("stop", "--all"), ("adopt", "k.json")])
@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PORT", "abc", "--port: Input should be a valid integer"),
        ("FORK_KERNELS", '["python3"', "--fork-kernels: not a JSON list"),
        ("STATE_DIR", "~nobody-of-this-name/x", "--state-dir: Could not determine home directory"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(
    commands: Commands, home: Home, arguments: tuple[str, ...], name: str, value: str, said: str
) -> None:
    ran = commands.run("kernels", *arguments, home=home, env={f"KERNELKEEP_{name}": value})
    (line,) = ran.stderr.splitlines()
    assert (ran.returncode, ran.stdout) == (2, "")
    assert line.startswith(f"kernelkeep: {said}")


@pytest.mark.parametrize("arguments", [("list",), ("list", "--json"), ("stop", "--all")])
def test_with_the_directory_given_no_other_option_matters(
    commands: Commands, home: Home, arguments: tuple[str, ...]
) -> None:
    given = ("--state-dir", str(home.state_dir / "none"))
    ran = commands.run("kernels", *arguments, *given, home=home, env={"KERNELKEEP_PORT": "abc"})
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.parametrize(
    "told", ["", "[]", "{}", '{"url": 1, "token": ""}', '{"url": "http://h:x/", "token": "t"}']
)
def test_what_a_server_has_left_that_is_of_no_use_is_told(
    commands: Commands, home: Home, told: str
) -> None:
    (home.state_dir / "server.json").write_text(told)
    ran = commands.run("kernels", "adopt", "k.json", home=home)
    assert ran.returncode == 1
    assert ran.stderr.startswith(f"kernelkeep: no server says that it has {home.state_dir}")
