"""A keeper whose kernels end with the server (``on_shutdown=stop``): when, and what is left."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.keeper.processes import start_time
from app.keeper.protocol import PROTOCOL, Fields, pack, receive, socket_address
from app.keeper.service import Service
from app.managers.processes.keeper.client import Keeper
from tests.keeper.conftest import WAIT, connected, ended, launch
from tests.support.home import Home
from tests.support.processes import eventually, is_alive, keepers

SLEEP = "echo up; exec sleep 1000"


@pytest.fixture
async def keeper(home: Home) -> AsyncIterator[Keeper]:
    """With a directory that goes with this process, or when it is closed."""
    (home.state_dir / "output").mkdir(mode=0o700)
    (own(home) / "below").mkdir(parents=True)
    keeper = await connected(home.state_dir, orphan_timeout=None, own=[own(home)])
    yield keeper
    await keeper.close()


def own(home: Home) -> Path:
    return home.path / "own"


def stubborn(home: Home) -> str:
    """A process that says when it is there, and ends by SIGKILL alone."""
    return f"trap '' TERM; touch {home.root_dir}/up; while :; do sleep 0.1; done"


async def test_the_end_of_the_server_ends_the_kernels_and_then_the_keeper(
    home: Home, keeper: Keeper
) -> None:
    kept = await launch(keeper, home, SLEEP)
    await keeper.close()
    await eventually(lambda: not is_alive(kept.pid), WAIT)
    await eventually(lambda: not own(home).exists(), WAIT)
    await eventually(lambda: not home.processes(), WAIT)


async def test_one_that_heeds_no_signal_is_killed(home: Home, keeper: Keeper) -> None:
    kept = await launch(keeper, home, stubborn(home))
    await eventually((home.root_dir / "up").exists, WAIT)
    await keeper.close()
    await eventually(lambda: not is_alive(kept.pid), WAIT)
    await eventually(lambda: not home.processes(), WAIT)
    assert not own(home).exists()


async def test_a_connection_that_is_lost_ends_nothing(home: Home, keeper: Keeper) -> None:
    kept = await launch(keeper, home, SLEEP)
    pid = keeper.pid

    async def lose_it() -> None:
        lost = keeper._connection.link
        assert lost is not None
        lost._transport.abort()
        await eventually(lambda: keeper._connection.link is not lost and keeper.pid == pid, WAIT)

    for _ in range(3):
        await lose_it()
    assert (await keeper.kept())["k"] == kept
    assert not keeper.exited("k").done()
    assert own(home).exists()


async def test_another_keeper_in_place_of_one_that_was_killed_ends_them_too(
    home: Home, keeper: Keeper
) -> None:
    kept = await launch(keeper, home, SLEEP)
    killed = keeper.pid
    assert killed is not None
    psutil.Process(killed).kill()
    await eventually(lambda: keeper.pid not in (None, killed), WAIT)
    assert is_alive(kept.pid)
    assert own(home).exists()
    await keeper.close()
    await eventually(lambda: not is_alive(kept.pid), WAIT)
    await eventually(lambda: not home.processes(), WAIT)
    assert not own(home).exists()


class Other:
    """A server that is not this process, and a connection for it."""

    def __init__(self, home: Home, process: subprocess.Popen[bytes]) -> None:
        self._home = home
        self._process = process
        self._writer: asyncio.StreamWriter | None = None

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    async def connect(self, started: str | None = None) -> Any:
        """Greet the keeper; its answer."""
        connection = socket.socket(socket.AF_UNIX)
        directory = os.open(self._home.state_dir / "keeper", os.O_RDONLY)
        with socket_address(directory, self._home.state_dir / "keeper") as address:
            connection.connect(address)
        os.close(directory)
        reader, self._writer = await asyncio.open_unix_connection(sock=connection)
        await receive(reader)
        pid = self._process.pid
        server: Fields = {"pid": pid, "start_time": started or start_time(pid)}
        numbers = dict.fromkeys(("log_bytes", "log_total_bytes", "log_age"), 10**7)
        hello = {"ask": "hello", "protocol": PROTOCOL, **numbers, "output_bytes": 10**4}
        server["own"] = [str(own(self._home))]
        self._writer.write(pack({**hello, "orphan_timeout": 0.2, "server": server}))
        answer, _ = await receive(reader)
        return answer["answer"]["kept"]

    async def disconnect(self) -> None:
        assert self._writer is not None
        self._writer.close()
        await self._writer.wait_closed()


@pytest.fixture
async def other(home: Home) -> AsyncIterator[Other]:
    """Another server, in whose place a process sleeps."""
    process = await asyncio.to_thread(subprocess.Popen, ["sleep", "1000"], start_new_session=True)
    other = Other(home, process)
    yield other
    other.end()
    if other._writer is not None:
        other._writer.transport.abort()


async def with_a_kernel(home: Home) -> int:
    """A keeper that keeps a kernel and has no server; the kernel's process id."""
    (home.state_dir / "output").mkdir(mode=0o700)
    (own(home) / "below").mkdir(parents=True)
    keeper = await connected(home.state_dir, orphan_timeout=3600)
    kept = await launch(keeper, home, SLEEP)
    await keeper.close()
    return kept.pid


async def test_it_is_the_process_of_the_server_that_counts_and_not_its_connection(
    home: Home, other: Other
) -> None:
    pid = await with_a_kernel(home)
    for _ in range(3):
        (kept,) = await other.connect()
        assert (kept["pid"], kept["exit_code"]) == (pid, None)
        await other.disconnect()
    (keeper,) = keepers(home.processes())
    log = home.state_dir / "keeper" / "log"
    with pytest.raises(AssertionError):  # longer than it waits for one that it cannot see
        await eventually(lambda: not is_alive(pid), 1)
    assert "kernels are stopped" not in log.read_text()
    other.end()
    await eventually(lambda: not is_alive(pid), WAIT)
    await eventually(lambda: not is_alive(keeper.pid), WAIT)
    assert not own(home).exists()


async def test_a_server_that_ended_before_it_was_seen_has_ended(home: Home, other: Other) -> None:
    pid = await with_a_kernel(home)
    await other.connect(started="of another process")
    await eventually(lambda: not is_alive(pid), WAIT)
    await other.disconnect()
    await eventually(lambda: not home.processes(), WAIT)
    assert not own(home).exists()


async def test_a_process_that_has_ended_by_itself_is_told_as_ever(
    home: Home, keeper: Keeper
) -> None:
    await launch(keeper, home, "exit 3")
    assert await ended(keeper) == 3


async def test_kernels_begin_to_end_once_if_a_stop_comes_before_the_timer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listener, other = socket.socketpair()
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    service = Service(listener, directory)
    service.stop()
    service._stop_orphans()  # as the timer of the last server that has left
    service.stop()
    assert [each for each in caplog.messages if "kernels are stopped" in each] == caplog.messages
    assert len(caplog.messages) == 1
    assert service.ended.done()
    other.close()
    os.close(directory)
