"""A keeper that refuses, hangs, answers late or not at all, or ends: nobody else is hit, and
nothing runs that nobody knows of."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.keeper.output import lasting_pipe
from app.keeper.processes import UNKNOWN_EXIT, leader_that_writes, start_time
from app.keeper.protocol import PROTOCOL, Fields, keeper_dir, pack, receive, socket_address
from app.managers.errors import KeeperUnavailable
from app.managers.processes.keeper import client as keeping
from app.managers.processes.keeper import kept as kept_processes
from app.managers.processes.keeper import link as keeper_link
from app.managers.processes.keeper.client import Keeper
from tests.keeper.conftest import WAIT, Open, connected, ended, launch
from tests.support.home import Home
from tests.support.keeper_relay import Cut, Relay, Side
from tests.support.processes import eventually, is_alive, keepers
from tests.support.streams import Stream, aborted

SHORT = 0.5
"""Seconds for an answer, where it is not to come."""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits long for an answer."""
    monkeypatch.setattr(keeper_link, "ANSWER_SECONDS", SHORT)
    monkeypatch.setattr(keeping, "QUICK_SECONDS", SHORT)


@asynccontextmanager
async def stopped(keeper: Keeper) -> AsyncIterator[None]:
    """Within, the keeper's process is stopped."""
    assert keeper.pid is not None
    os.kill(keeper.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(keeper.pid, signal.SIGCONT)


def sleepers(home: Home) -> list[int]:
    """What runs in the root directory: the kernels' processes."""
    found = []
    for process in home.processes():
        try:
            if process.cwd() == str(home.root_dir):
                found.append(process.pid)
        except psutil.NoSuchProcess:
            continue
    return found


@asynccontextmanager
async def connection(home: Home) -> AsyncIterator[Stream]:
    """A connection on which anything can be asked, behind the keeper's greeting."""
    directory = os.open(keeper_dir(home.state_dir), os.O_RDONLY)
    stream = socket.socket(socket.AF_UNIX)
    with socket_address(directory, keeper_dir(home.state_dir)) as address:
        stream.connect(address)
    os.close(directory)
    with aborted(await asyncio.open_unix_connection(sock=stream)) as (reader, writer):
        greeting, _ = await receive(reader)
        assert greeting["keeper"] == PROTOCOL
        yield reader, writer


HEAR: Fields = {"session": "s", "epoch": "0123456789abcdef", "info": None, "anew": False}

REQUESTS: dict[str, Fields] = {
    "empty command": {"ask": "launch", "command": []},
    "no command": {"ask": "launch", "command": None},
    "number as command": {"ask": "launch", "command": 1},
    "number in command": {"ask": "launch", "command": ["/bin/sh", 1]},
    "NUL in command": {"ask": "launch", "command": ["/bin/sh", "\0"]},
    "surrogate in command": {"ask": "launch", "command": ["/bin/sh", "\ud800"]},
    "empty word": {"ask": "launch", "command": [""]},
    "directory as command": {"ask": "launch", "command": ["/"]},
    "number in env": {"ask": "launch", "env": {"A": 1}},
    "= in env": {"ask": "launch", "env": {"A=B": "c"}},
    "env of a list": {"ask": "launch", "env": ["A"]},
    "no directory": {"ask": "launch", "cwd": "/none"},
    "cwd of a number": {"ask": "launch", "cwd": [1]},
    "output elsewhere": {"ask": "launch", "output": "/none/here"},
    "output of a number": {"ask": "launch", "output": 3},
    "hear nobody": {"ask": "hear", **HEAR, "kernel_id": None},
    "hear a list": {"ask": "hear", **HEAR, "kernel_id": ["k"]},
    "hear without a log": {"ask": "hear", **HEAR, "directory": "/proc/none/here"},
    "a log in a number": {"ask": "hear", **HEAR, "directory": 7},
    "hear nothing in particular": {"ask": "hear"},
    "information of a list": {"ask": "hear", **HEAR, "info": ["ip"]},
    "useless information": {"ask": "hear", **HEAR, "info": {"ip": "127.0.0.1"}},
    "open nobody": {"ask": "open"},
    "input for nobody": {"ask": "stdin"},
    "settle a list": {"ask": "settle", "kernel_id": ["k"]},
    "disconnect a list": {"ask": "disconnect", "kernel_id": ["k"]},
    "run nothing": {"ask": "run", "command": []},
    "adopt a word": {"ask": "adopt", "pid": "one", "start_time": ""},
    "adopt a large number": {"ask": "adopt", "pid": 10**30, "start_time": ""},
    "signal nobody": {"ask": "signal", "number": 9},
    "end nothing in particular": {"ask": "tail"},
    "wrong hello": {"ask": "hello", "protocol": "1"},
    "hello of words": {"ask": "hello", "protocol": PROTOCOL, "log_bytes": "many"},
    "unknown": {"ask": "dance"},
    "a list": {"ask": ["hello"]},
    "nothing": {},
    "an odd time": {"ask": "kept", "until": "soon"},
    "too late": {"ask": "kept", "until": 1},
}


async def test_what_cannot_be_done_is_told_to_who_asked_for_it_alone(
    home: Home, open_keeper: Open
) -> None:
    keeper = await open_keeper()
    pid = keeper.pid
    await launch(keeper, home, "exec sleep 1000")
    await eventually(lambda: len(sleepers(home)) == 1)  # the shell has become it
    (known,) = sleepers(home)
    whole = {
        "kernel_id": "other",
        "launch": "x",
        "command": ["/bin/sh", "-c", "exec sleep 1000"],
        "env": home.environment(),
        "cwd": str(home.root_dir),
        "output": str(home.state_dir / "output" / "other.log"),
    }
    # All at once: each has its own answer, and what is sound among them is done.
    async with connection(home) as (reader, writer):
        for number, (name, request) in enumerate(REQUESTS.items()):
            writer.write(pack({**whole, **request, "id": [number, name]}))
            writer.write(pack({"ask": "kept", "id": number}))
        for number, name in enumerate(REQUESTS):
            answer, _ = await asyncio.wait_for(receive(reader), WAIT)
            assert (answer["id"], "error" in answer) == ([number, name], True), answer
            answer, _ = await asyncio.wait_for(receive(reader), WAIT)
            assert [kept["pid"] for kept in answer["answer"]] == [known], name
    assert sleepers(home) == [known]
    assert (keeper.pid, len(await keeper.kept())) == (pid, 1)
    with pytest.raises(ValueError, match="no command"):
        await keeper.launch("k2", [], env={}, cwd="/", output=home.path / "none")
    with pytest.raises(KeeperUnavailable, match="refuses: embedded null byte"):
        await keeper.launch("k2", ["/bin/\0"], env={}, cwd="/", output=home.path / "none")
    assert sleepers(home) == [known]


async def test_a_launch_that_cannot_be_noted_leaves_no_process(
    home: Home, open_keeper: Open
) -> None:
    keeper = await open_keeper()
    # A directory is where the pipe was to be, which the launch finds out before anything else.
    pipe = home.state_dir / "output" / "kernel-k.log.pipe"
    (pipe / "full").mkdir(parents=True)
    with pytest.raises(OSError, match=r"kernel-k\.log\.pipe"):
        await launch(keeper, home, "exec sleep 1000")
    assert (sleepers(home), await keeper.kept()) == ([], {})


@pytest.mark.usefixtures("impatient")
async def test_a_stopped_keeper_costs_those_their_answer_who_ask_meanwhile_and_nobody_else(
    home: Home, open_keeper: Open, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = await open_keeper()
    pid, lost = keeper.pid, []
    keeper.on_lost.append(lambda: lost.append(1))
    kept = await launch(keeper, home, "echo said; exec sleep 1000")
    async with stopped(keeper):
        asked = [keeper.kept(), launch(keeper, home, "touch done; exec sleep 1000", "late")]
        for outcome in await asyncio.gather(*asked, return_exceptions=True):
            assert isinstance(outcome, KeeperUnavailable)
            assert outcome.message == "The keeper of kernels does not answer"
        assert keeper.pid == pid

        async def in_time() -> dict[str, Any]:
            return await keeper.kept()

        patient = asyncio.create_task(in_time())
        await asyncio.sleep(0)
    assert [*(await patient)] == ["k"]
    # What it read too late it has not done; what it answered too late is nobody's answer.
    assert await keeper.tail("k") == "said"
    assert [*(await keeper.kept())] == ["k"]
    assert sleepers(home) == [kept.pid]
    assert not (home.root_dir / "done").exists()
    assert (await launch(keeper, home, "exec sleep 1000", "late")).pid in sleepers(home)
    assert (keeper.pid, lost) == (pid, [])
    assert "ended" not in caplog.text


COUNTING = """
import signal, time
signal.signal(signal.SIGUSR1, lambda *_: print("one", flush=True))
print("up", flush=True)
while True:
    time.sleep(1)
"""


@pytest.mark.usefixtures("impatient")
async def test_a_stopped_keeper_keeps_no_signal_from_a_process_and_no_end_from_us(
    home: Home, open_keeper: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_processes, "EXIT_SECONDS", SHORT)
    keeper = await open_keeper()
    log = home.state_dir / "output" / "kernel-k.log"
    kept = await launch(keeper, home, f"exec {sys.executable} -c {shlex.quote(COUNTING)}")
    other = await launch(keeper, home, "exec sleep 1000", "other")
    await eventually(lambda: log.exists() and log.read_text() == "up\n", WAIT)
    async with stopped(keeper):
        await asyncio.wait_for(keeper.signal("k", signal.SIGUSR1), WAIT)
        await asyncio.wait_for(keeper.signal("other", signal.SIGKILL), WAIT)
        assert await ended(keeper, "other") == UNKNOWN_EXIT
        with pytest.raises(ProcessLookupError):
            await keeper.signal("other", signal.SIGKILL)
        await asyncio.wait_for(keeper.forget("other"), SHORT)
        assert await keeper.tail("k") == "up"
    assert [*(await keeper.kept())] == ["k"]
    await eventually(lambda: log.read_text() == "up\none\n", WAIT)
    assert not is_alive(other.pid)
    await keeper.signal("k", signal.SIGUSR1)
    await eventually(lambda: log.read_text() == "up\none\none\n", WAIT)
    await keeper.signal("k", signal.SIGKILL)
    assert await ended(keeper) == -signal.SIGKILL
    assert not is_alive(kept.pid)


async def test_an_exit_code_that_is_told_late_is_not_lost(home: Home, open_keeper: Open) -> None:
    keeper = await open_keeper()
    kept = await launch(keeper, home, "while ! test -e go; do sleep 0.05; done; exit 5")
    async with stopped(keeper):
        (home.root_dir / "go").touch()
        await eventually(lambda: not is_alive(kept.pid), WAIT)
        assert not keeper.exited("k").done()
    assert await ended(keeper) == 5


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("patient", [False, True], ids=["late", "cancelled"])
async def test_what_was_launched_without_an_answer_is_ended(
    home: Home, open_keeper: Open, patient: bool
) -> None:
    """The keeper has launched it; its answer comes when nobody waits any more."""
    first = await open_keeper()
    launched, go_on = asyncio.Event(), asyncio.Event()

    async def step(side: Side, ask: str) -> None:
        if (side, ask) == ("after", "launch") and not launched.is_set():
            launched.set()
            await go_on.wait()

    async with Relay(home.state_dir, step):
        keeper = await open_keeper()
        launching = asyncio.create_task(launch(keeper, home, "exec sleep 1000"))
        await asyncio.wait_for(launched.wait(), WAIT)
        assert len(sleepers(home)) == 1
        if patient:
            launching.cancel()
        with pytest.raises(asyncio.CancelledError if patient else KeeperUnavailable):
            await launching
        await eventually(lambda: not sleepers(home), WAIT)
        go_on.set()
        assert await keeper.kept() == {}
        again = await launch(keeper, home, "exec sleep 1000")
        assert sleepers(home) == [again.pid]
        assert [*(await first.kept())] == ["k"]
        await keeper.close()


@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("killed", [False, True], ids=["cut", "killed"])
async def test_a_launch_whose_connection_ends_is_asked_for_again(
    home: Home, open_keeper: Open, side: Side, killed: bool
) -> None:
    first = await open_keeper()
    (process,) = keepers(home.processes())
    done: list[str] = []

    async def step(at: Side, ask: str) -> None:
        if (at, ask) == (side, "launch") and not done:
            done.append(ask)
            assert len(sleepers(home)) == (side == "after")
            if killed:
                process.kill()
            raise Cut

    async with Relay(home.state_dir, step):
        keeper = await open_keeper()
        kept = await launch(keeper, home, "exec sleep 1000")
        assert done
        await eventually(lambda: sleepers(home) == [kept.pid], WAIT)
        assert [*(await keeper.kept())] == ["k"]
        assert (keeper.pid == process.pid) is not killed
        await keeper.signal("k", signal.SIGTERM)
        assert await ended(keeper) == -signal.SIGTERM
        await keeper.forget("k")
        await keeper.close()
    await first.close()


async def test_what_is_forgotten_while_a_connection_is_made_anew_is_ended(
    home: Home, open_keeper: Open
) -> None:
    first = await open_keeper()
    passed: list[str] = []

    async def step(at: Side, ask: str) -> None:
        if (at, ask) == ("before", "settle") and "settle" not in passed:
            passed.append(ask)
            raise Cut
        if at == "after" and passed == ["settle"] and ask == "hello":
            passed.append(ask)  # the answer tells of both
            await keeper.forget("one")
        elif at == "after" and passed == ["settle", "hello"] and ask == "end":
            passed.append(ask)
            await keeper.forget("two")

    async with Relay(home.state_dir, step):
        keeper = await open_keeper()
        for kernel_id in ("one", "two"):
            await launch(keeper, home, "exec sleep 1000", kernel_id)
        assert not await keeper.settle("one")  # it is asked once more
        assert passed == ["settle", "hello", "end"]
        await eventually(lambda: not sleepers(home), WAIT)
        for kernel_id in ("one", "two"):
            with pytest.raises(KeyError):
                keeper.exited(kernel_id)
        assert await first.kept() == {}
        await keeper.close()


async def test_a_connection_whose_end_nobody_has_seen_yet_is_made_anew(
    home: Home, open_keeper: Open
) -> None:
    keeper = await open_keeper()
    pid = keeper.pid
    await launch(keeper, home, "exec sleep 1000", "steady")
    for ask in (lambda: launch(keeper, home, "exec sleep 1000"), keeper.kept):
        assert keeper._connection.link is not None
        keeper._connection.link._writer.transport.abort()
        assert await asyncio.gather(ask(), keeper.kept(), keeper.kept())
    assert keeper.pid == pid
    assert len(sleepers(home)) == 2


async def test_a_process_that_a_killed_keeper_had_no_time_to_note_is_found(
    home: Home, open_keeper: Open
) -> None:
    """Between the two it has noted that it is about to launch one, and no number."""
    output = home.state_dir / "output" / "kernel-k.log"
    pipe = lasting_pipe(output)
    process = await asyncio.create_subprocess_exec(
        *("/bin/sh", "-c", "sleep 1000 & wait"), stdout=pipe, stderr=pipe, start_new_session=True
    )
    os.close(pipe)
    directory = keeper_dir(home.state_dir)
    directory.mkdir(mode=0o700)
    gone = str(home.state_dir / "output" / "gone.log")
    notes = [["k", 0, "", str(output)], ["gone", 0, "", gone], ["odd", 0, "", "\0"]]
    (directory / "kept").write_text("".join(f"{json.dumps(note)}\n" for note in notes))
    keeper = await open_keeper()
    kept = await keeper.kept()
    assert {kernel_id: kept.pid for kernel_id, kept in kept.items()} == {"k": process.pid}
    assert kept["k"].start_time == start_time(process.pid)
    await keeper.end("k")
    assert await process.wait() == -signal.SIGKILL
    assert leader_that_writes(Path(f"{output}.pipe")) is None


async def test_nobody_notices_that_another_who_waited_for_the_keeper_was_cancelled(
    home: Home, open_keeper: Open
) -> None:
    keeper = Keeper(home.state_dir, orphan_timeout=60, output_bytes=4096)
    waiting = [asyncio.create_task(keeper.kept()) for _ in range(5)]
    await asyncio.sleep(0.05)
    waiting[0].cancel()
    outcomes = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert outcomes[1:] == [{}] * 4
    assert len(keepers(home.processes())) == 1
    await keeper.close()


class Peer:
    """Somebody on the keeper's socket that greets as a keeper does, and then has its own ways."""

    def __init__(self) -> None:
        self.connections = 0
        self.ends_behind_hello = 0
        self.greets = True
        self.asked: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.greets:
            writer.write(pack({"keeper": PROTOCOL, "pid": os.getpid()}))
        try:
            while True:
                fields, _ = await receive(reader)
                self.asked.append(fields["ask"])
                answer = {"kept": [], "heard": []} if fields["ask"] == "hello" else []
                writer.write(pack({"id": fields["id"], "answer": answer}))
                if self.connections <= self.ends_behind_hello:
                    break
        except asyncio.IncompleteReadError:
            pass
        writer.close()


@pytest.fixture
async def peer(home: Home) -> AsyncIterator[Peer]:
    directory = keeper_dir(home.state_dir)
    directory.mkdir(mode=0o700)
    peer = Peer()
    server = await asyncio.start_unix_server(peer.serve, directory / "socket")
    (directory / "socket").chmod(0o600)
    yield peer
    server.close()


async def test_a_connection_that_ends_just_behind_the_greeting_is_made_anew(
    home: Home, peer: Peer
) -> None:
    peer.ends_behind_hello = 2
    keeper = await connected(home.state_dir, orphan_timeout=1)
    assert await keeper.kept() == {}
    assert (peer.connections, peer.asked) == (3, ["hello", "hello", "hello", "kept"])
    await keeper.close()


@pytest.mark.usefixtures("impatient")
async def test_who_does_not_even_greet_is_not_said_to_have_ended(home: Home, peer: Peer) -> None:
    peer.greets = False
    with pytest.raises(KeeperUnavailable, match="says nothing; is its process stopped"):
        await connected(home.state_dir, orphan_timeout=1)


async def test_there_is_a_bound_on_what_waits_for_a_keeper_that_reads_nothing(
    home: Home, open_keeper: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = await open_keeper()
    monkeypatch.setattr(keeper_link, "MAX_UNSENT", 200_000)
    async with stopped(keeper):
        large = [
            asyncio.create_task(launch(keeper, home, f"true {'x' * 100_000}", str(number)))
            for number in range(20)
        ]
        done, waiting = await asyncio.wait(large, timeout=1)
        assert 10 < len(done) < 20
        for task in done:
            with pytest.raises(KeeperUnavailable, match="has not read what it was asked before"):
                task.result()
    assert len(await asyncio.gather(*waiting)) == len(waiting)


async def test_nothing_is_left_of_many_kernels(home: Home, open_keeper: Open) -> None:
    """Descriptors, here and there, and what is remembered of whom."""
    keeper = await open_keeper()
    here, there = psutil.Process(), psutil.Process(keeper.pid)
    before = here.num_fds(), there.num_fds()
    for number in range(10):
        await launch(keeper, home, "exit 3" if number % 2 else "exec sleep 1000", f"k{number}")
        if number % 2:
            await ended(keeper, f"k{number}")
        await keeper.forget(f"k{number}")
    assert await keeper.kept() == {}
    await eventually(lambda: not sleepers(home), WAIT)
    await eventually(lambda: (here.num_fds(), there.num_fds()) == before, WAIT)
    assert not there.children()


async def test_a_keeper_with_no_descriptor_left_for_a_connection_waits_and_does_not_spin(
    home: Home, open_keeper: Open
) -> None:
    keeper = await open_keeper()
    assert keeper.pid is not None
    process = psutil.Process(keeper.pid)
    soft, hard = process.rlimit(psutil.RLIMIT_NOFILE)
    process.rlimit(psutil.RLIMIT_NOFILE, (process.num_fds(), hard))
    stranger = socket.socket(socket.AF_UNIX)
    stranger.connect(str(keeper_dir(home.state_dir) / "socket"))
    await asyncio.sleep(1.5)
    assert process.cpu_percent(0.5) < 50
    process.rlimit(psutil.RLIMIT_NOFILE, (soft, hard))
    stranger.settimeout(WAIT)
    assert b'"keeper"' in await asyncio.to_thread(stranger.recv, 1000)
    stranger.close()
    log = (keeper_dir(home.state_dir) / "log").read_text()
    assert log.count("a connection failed") < 10
