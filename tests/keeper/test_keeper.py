"""The keeper: processes that outlive the server, how they end, and the keeper's own life.

These are the tests of `app.keeper.__main__`, `app.keeper.ending`, `app.keeper.kept_kernels`,
`app.keeper.kernels`, `app.keeper.main` and `app.keeper.service`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
import zmq
from jupyter_client.connect import write_connection_file

from app.keeper.group_files import Base, GroupFiles, Unusable
from app.keeper.groups import ControlGroups
from app.keeper.hearing import UNKNOWN_MESSAGES
from app.keeper.kept_kernels import KeptKernels
from app.keeper.main import handle_signals
from app.keeper.notes import Note, Notes
from app.keeper.processes import HAS_PROC, UNKNOWN_EXIT, start_time
from app.keeper.protocol import PROTOCOL, pack, socket_address
from app.keeper.service import Service
from app.managers.errors import KeeperUnavailable, KernelUnreachable
from app.managers.log.message_log import Gap, MessageLog, Position
from app.managers.processes.keeper.client import Keeper
from app.protocol.compose import make_message
from tests.keeper.conftest import EPOCH, WAIT, Ear, Open, ended, launch
from tests.kernels.driver import free_ports
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_KERNEL
from tests.support.processes import eventually, is_alive, keepers
from tests.support.streams import aborted


def sleeping() -> subprocess.Popen[bytes]:
    """A process that is nobody's kernel."""
    return subprocess.Popen(["sleep", "1000"], start_new_session=True)


async def kill(keeper: Keeper) -> None:
    """Kill the keeper's process; returns when the connection to it is gone."""
    pid = keeper.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: keeper.pid != pid, WAIT)


def test_a_child_may_end_behind_the_loop() -> None:
    before = signal.getsignal(signal.SIGCHLD)
    loop = asyncio.new_event_loop()

    async def handle() -> None:
        handle_signals(cast(Service, SimpleNamespace(reap=lambda: None)), lambda: None)

    try:
        loop.run_until_complete(handle())
        loop.close()
        signal.raise_signal(signal.SIGCHLD)
    finally:
        signal.signal(signal.SIGCHLD, before)


async def test_exit_codes_signals_and_output_are_those_of_a_child(
    home: Home, open_keeper: Open
) -> None:
    keeper = await open_keeper()
    await launch(keeper, home, "echo said; echo wrong >&2; exit 7", "code")
    assert await ended(keeper, "code") == 7
    assert await keeper.tail("code") == "said\nwrong"
    file = home.state_dir / "output" / "kernel-code.log"
    assert file.read_text() == "said\nwrong\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600

    kept = await launch(keeper, home, "sleep 1000 & wait", "signal")
    (sleeper,) = await eventually(lambda: psutil.Process(kept.pid).children())
    assert os.getsid(kept.pid) == kept.pid
    await keeper.signal("signal", signal.SIGTERM)
    assert await ended(keeper, "signal") == -signal.SIGTERM
    await eventually(lambda: not is_alive(sleeper.pid))
    with pytest.raises(ProcessLookupError):
        await keeper.signal("signal", signal.SIGTERM)

    with pytest.raises(FileNotFoundError, match="nothing/here"):
        await keeper.launch("none", ["/nothing/here"], env={}, cwd="/", output=file)
    codes = {kept.kernel_id: kept.exit_code for kept in (await keeper.kept()).values()}
    assert codes == {"code": 7, "signal": -signal.SIGTERM}


async def test_a_process_outlives_the_server_and_how_it_ended_is_told_to_the_next(
    home: Home, open_keeper: Open
) -> None:
    first = await open_keeper()
    pid = first.pid
    kept = await launch(first, home, "while ! test -e go; do sleep 0.05; done; echo told; exit 5")
    await first.close()
    (home.root_dir / "go").touch()
    await eventually(lambda: not is_alive(kept.pid))

    second = await open_keeper()
    assert second.pid == pid
    assert await ended(second) == 5
    assert await second.tail("k") == "told"
    await second.forget("k")
    assert await second.kept() == {}


async def test_it_has_the_fast_event_loop_and_no_descriptor_for_a_child(
    home: Home, open_keeper: Open
) -> None:
    keeper = await open_keeper()
    assert keeper.pid is not None
    kept = await launch(keeper, home, "exec sleep 1000", "k")
    assert is_alive(kept.pid)
    if sys.platform == "linux" and HAS_PROC:
        process = psutil.Process(keeper.pid)
        assert any("uvloop" in Path(each.path).parts for each in process.memory_maps())
        directory = f"/proc/{keeper.pid}/fd"
        links = [os.readlink(f"{directory}/{name}") for name in os.listdir(directory)]
        assert not [link for link in links if "pidfd" in link]
    await keeper.signal("k", signal.SIGKILL)
    assert await ended(keeper, "k") == -signal.SIGKILL


async def test_it_ends_with_its_last_kernel_and_server(home: Home, open_keeper: Open) -> None:
    keeper = await open_keeper()
    pid = keeper.pid
    assert pid is not None
    await launch(keeper, home, "exit 0")
    await ended(keeper)
    await keeper.forget("k")
    await keeper.close()
    await eventually(lambda: not psutil.pid_exists(pid))
    # Nor are there notes of kernels.
    assert sorted(os.listdir(home.state_dir / "keeper")) == ["lock", "log"]


async def test_servers_that_come_at_once_start_one_keeper(home: Home, open_keeper: Open) -> None:
    opened = await asyncio.gather(*(open_keeper() for _ in range(4)))
    assert len({keeper.pid for keeper in opened}) == 1
    pid = opened[0].pid
    assert pid is not None
    # Those that came too late take a moment to end.
    await eventually(lambda: [process.pid for process in keepers(home.processes())] == [pid])
    assert psutil.Process(pid).terminal() is None
    assert os.getsid(pid) == pid


async def test_kernels_live_on_when_the_keeper_is_killed_and_the_next_watches_them(
    home: Home, open_keeper: Open, caplog: pytest.LogCaptureFixture
) -> None:
    keeper = await open_keeper()
    killed = keeper.pid
    # The second writes more than its pipe holds while nobody reads.
    flood = "while ! test -e go; do sleep 0.05; done; head -c 200000 /dev/zero; echo end; exec cat"
    steady = await launch(keeper, home, "exec sleep 1000", "steady")
    busy = await launch(keeper, home, f"mkfifo wait; {flood} <>wait", "busy")
    with caplog.at_level(logging.WARNING):
        await kill(keeper)
    (home.root_dir / "go").touch()
    assert "its 2 kernels live on" in caplog.text

    kept = await keeper.kept()
    assert keeper.pid != killed
    assert {k: (v.pid, v.exit_code) for k, v in kept.items()} == {
        "steady": (steady.pid, None),
        "busy": (busy.pid, None),
    }

    async def has_ended_writing() -> bool:
        return (await keeper.tail("busy")).endswith("end")

    await eventually(has_ended_writing, WAIT)
    await keeper.signal("steady", signal.SIGTERM)
    assert await ended(keeper, "steady") == UNKNOWN_EXIT
    assert not is_alive(steady.pid)
    assert is_alive(busy.pid)


async def test_what_a_keeper_had_that_was_killed_with_its_server_the_next_has(
    home: Home, open_keeper: Open
) -> None:
    keeper = await open_keeper()
    known = await launch(keeper, home, "exec sleep 1000", "known")
    unknown = await launch(keeper, home, "exec sleep 1000", "unknown")
    gone = await launch(keeper, home, "exec sleep 1000", "gone")
    await launch(keeper, home, "exit 3", "over")
    assert await ended(keeper, "over") == 3
    notes = home.state_dir / "keeper" / "kept"
    assert stat.S_IMODE(notes.stat().st_mode) == 0o600
    (process,) = keepers(home.processes())
    await keeper.close()
    process.kill()
    os.kill(gone.pid, signal.SIGKILL)
    await eventually(lambda: not is_alive(process.pid) and not is_alive(gone.pid))
    again = await open_keeper()
    kept = await again.kept()
    assert {k: v.pid for k, v in kept.items()} == {"known": known.pid, "unknown": unknown.pid}
    output = Path(known.output)
    adopted = await again.adopt("known", known.pid, known.start_time, output)
    assert adopted is not None
    await again.end("unknown")
    assert not is_alive(unknown.pid)
    assert list(await again.kept()) == ["known"]


@pytest.mark.parametrize("text", ["{", "[[1]]", '[["k", "x", "", ""]]', "null"])
async def test_notes_of_no_use_stop_nothing(home: Home, open_keeper: Open, text: str) -> None:
    (home.state_dir / "keeper").mkdir(mode=0o700)
    (home.state_dir / "keeper" / "kept").write_text(text)
    keeper = await open_keeper()
    assert await keeper.kept() == {}
    await launch(keeper, home, "exec sleep 1000")
    assert "sleep" not in (home.state_dir / "keeper" / "kept").read_text()


def no_groups(_: GroupFiles) -> Base:
    raise Unusable("there are none")


async def test_a_process_that_macos_lets_nobody_signal_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(number: int) -> None:
        raise PermissionError

    directory, process = os.open(tmp_path, os.O_RDONLY), sleeping()
    note = ("k", process.pid, start_time(process.pid) or "", str(tmp_path / "k.log"))
    Notes(directory).write([note])
    groups = ControlGroups("key", no_groups)
    kept = KeptKernels(directory, lambda _: None, lambda: None, groups)
    kept.take_over()
    kernel = kept["k"]
    monkeypatch.setattr(kernel, "signal", refuse)
    try:
        kept.forget(kernel)
        assert kept.records == []
        assert Notes(directory).read() == []
    finally:
        kept.close()
        process.kill()
        process.wait()
        os.close(directory)


async def test_a_keeper_that_is_killed_while_it_takes_over_leaves_the_notes_of_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def take_over(note: Note) -> None:
        if note[0] == "second":
            raise Killed
        really(note)

    directory = os.open(tmp_path, os.O_RDONLY)
    processes = {name: sleeping() for name in ("first", "second")}
    notes = [
        (name, process.pid, start_time(process.pid) or "", str(tmp_path / f"{name}.log"))
        for name, process in processes.items()
    ]
    Notes(directory).write(notes)
    groups = ControlGroups("key", no_groups)
    kept = KeptKernels(directory, lambda _: None, lambda: None, groups)
    really = kept._take_over
    monkeypatch.setattr(kept, "_take_over", take_over)
    try:
        with pytest.raises(Killed):
            kept.take_over()
        assert [kernel.kernel_id for kernel in kept] == ["first"]
        assert {note[0] for note in Notes(directory).read()} == {"first", "second"}
    finally:
        kept.close()
        for process in processes.values():
            process.kill()
            process.wait()
        os.close(directory)


async def test_a_number_that_another_process_got_is_not_taken_for_the_kernel(
    home: Home, open_keeper: Open
) -> None:
    keeper = await open_keeper()
    other = sleeping()
    try:
        assert start_time(other.pid) is not None
        output = home.state_dir / "output" / "k.log"
        assert await keeper.adopt("k", other.pid, "another/1", output) is None
        with pytest.raises(KeeperUnavailable):
            await keeper.signal("k", signal.SIGKILL)
        assert await keeper.kept() == {}
        assert other.poll() is None
    finally:
        other.kill()
        other.wait()


async def test_kernels_that_nobody_comes_for_are_stopped(home: Home, open_keeper: Open) -> None:
    keeper = await open_keeper(orphan_timeout=0.5)
    pid = keeper.pid
    assert pid is not None
    kept = await launch(keeper, home, "trap 'echo bye; exit 0' TERM; echo up; sleep 1000 & wait")
    await asyncio.sleep(1)  # longer than the timeout: a server is there

    async def is_up() -> bool:
        return await keeper.tail("k") == "up"

    await eventually(is_up, WAIT)
    assert is_alive(kept.pid)
    await keeper.close()
    await eventually(lambda: not is_alive(kept.pid) and not is_alive(pid), WAIT)
    assert (home.state_dir / "output" / "kernel-k.log").read_text() == "up\nbye\n"


async def test_they_are_asked_before_they_are_told(home: Home, open_keeper: Open) -> None:
    keeper = await open_keeper(orphan_timeout=0.1)
    pid = keeper.pid
    assert pid is not None
    ports: dict[str, Any] = free_ports()
    where = str(home.path / "k.json")
    file, info = write_connection_file(where, ip="127.0.0.1", key=b"secret", **ports)
    fake = f"{sys.executable} {FAKE_KERNEL} -f {file} --ignore-sigterm"
    await launch(keeper, home, f"trap '' TERM; {fake}; echo ended with code $?")
    ear = Ear(keeper)
    await ear.line.hear(home.path / "log", info, anew=True)
    await eventually(lambda: ear.next > 1, WAIT)
    await keeper.close()
    await eventually(lambda: not is_alive(pid), WAIT)
    assert "ended with code 0" in (home.state_dir / "output" / "kernel-k.log").read_text()


def message(number: int) -> list[bytes]:
    """What iopub says, more or less; every other one has a buffer."""
    header = b'{"msg_id": "%d", "msg_type": "stream", "session": "kernel"}' % number
    frames = [b"topic", b"<IDS|MSG>", b"", header, b"{}", b"{}", b'{"n": %d}' % number]
    return [*frames, b"x" * 10_000] if number % 2 else [*frames[:-1], frames[-1] + b" " * 10_000]


@pytest.fixture
def publisher() -> Iterator[tuple[zmq.Socket[bytes], dict[str, Any]]]:
    """A kernel's publisher, and how to hear it."""
    public, secret = zmq.curve_keypair()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    iopub = context.socket(zmq.XPUB)
    iopub.sndhwm = 0
    iopub.curve_server, iopub.curve_secretkey = True, secret
    ports = {**free_ports(), "iopub_port": iopub.bind_to_random_port("tcp://127.0.0.1")}
    info = {"transport": "tcp", "ip": "127.0.0.1", "key": "", **ports}
    yield iopub, {**info, "curve_publickey": public, "curve_secretkey": secret}
    context.destroy(linger=0)


async def is_subscribed(iopub: zmq.Socket[bytes]) -> None:
    assert await asyncio.to_thread(iopub.poll, WAIT * 1000)
    assert iopub.recv() == b"\x01"


def said_in(log: Path, ear: Ear) -> tuple[int, list[tuple[int, bytes]]]:
    """What is left out at the beginning of a kernel's log, and what is in it behind that."""
    reading = MessageLog(log, "k")
    reading.begin_at(EPOCH, ear.bells[-1])
    found: list[tuple[int, bytes]] = []
    lost = 0
    while reading.unseen:
        entries = reading.next_unseen(64, 2**20)
        if isinstance(entries, Gap):
            assert not found
            lost += entries.messages
            reading.show(Position(reading.end.cursor + entries.messages, reading.end.offset))
            continue
        for entry in entries:
            reading.step(entry)
            found.append((entry.seq, bytes(entry.message.part(3))))
    return lost, found


async def test_what_a_kernel_says_while_there_is_no_server_is_in_its_log(
    home: Home, open_keeper: Open, publisher: tuple[zmq.Socket[bytes], dict[str, Any]]
) -> None:
    iopub, info = publisher
    log = home.path / "log"
    first = await open_keeper()
    await launch(first, home, "exec sleep 1000")
    ear = Ear(first)
    heard = await ear.line.hear(log, info, anew=True)
    assert (heard.epoch, heard.connected, heard.again) == (EPOCH, True, False)
    await is_subscribed(iopub)
    await first.close()
    for number in range(1, 501):
        iopub.send_multipart(message(number))

    second = await open_keeper()
    again = Ear(second)
    heard = await again.line.hear(log, info)
    assert (heard.connected, heard.again) == (True, False)  # it was heard all the time
    await eventually(lambda: again.next == 501, WAIT)
    lost, said = said_in(log, again)
    assert lost == 0
    assert said == [(n, message(n)[6]) for n in range(1, 501)]


async def test_what_a_keeper_that_was_killed_has_written_is_read_on_behind_a_gap(
    home: Home, open_keeper: Open, publisher: tuple[zmq.Socket[bytes], dict[str, Any]]
) -> None:
    iopub, info = publisher
    keeper = await open_keeper()
    await launch(keeper, home, "exec sleep 1000")
    ear = Ear(keeper)
    await ear.line.hear(home.path / "log", info, anew=True)
    await is_subscribed(iopub)
    iopub.send_multipart(message(1))
    await eventually(lambda: ear.next == 2, WAIT)
    await kill(keeper)
    await eventually(lambda: len(ear.heard) == 2, WAIT)
    assert ear.heard[-1].again
    assert ear.heard[-1].epoch == EPOCH
    assert ear.next == 2 + UNKNOWN_MESSAGES

    def is_heard() -> bool:
        iopub.send_multipart(message(2))
        return ear.next > 2 + UNKNOWN_MESSAGES

    await eventually(is_heard, WAIT)


async def test_what_is_dropped_is_told_of(
    home: Home, open_keeper: Open, publisher: tuple[zmq.Socket[bytes], dict[str, Any]]
) -> None:
    iopub, info = publisher
    keeper = await open_keeper()
    await launch(keeper, home, "exec sleep 1000")
    ear = Ear(keeper)
    await ear.line.hear(home.path / "log", info, anew=True)
    await is_subscribed(iopub)
    iopub.send_multipart(message(0)[:-2])
    ((count, channel, reason),) = await eventually(lambda: ear.malformed, WAIT)
    assert (count, channel) == (1, "iopub")
    assert reason
    iopub.send_multipart(message(1))
    await eventually(lambda: ear.next == 2, WAIT)


async def test_a_log_that_cannot_be_had_is_told_to_who_wants_it(
    home: Home, open_keeper: Open
) -> None:
    keeper = await open_keeper()
    (home.path / "log").write_text("no directory")
    with pytest.raises(KernelUnreachable):
        await Ear(keeper).line.hear(home.path / "log", None)
    with pytest.raises(KernelUnreachable):
        await Ear(keeper).line.hear(home.path / "other", {"ip": "127.0.0.1"}, anew=True)


async def test_the_log_of_a_kernel_that_is_gone_goes(home: Home, open_keeper: Open) -> None:
    keeper = await open_keeper()
    ear = Ear(keeper)
    log = home.path / "log"
    await ear.line.hear(log, None)
    ear.line.say(make_message("iopub", "status", {}, session="ours"))
    await eventually(lambda: ear.next == 2, WAIT)
    assert list(log.iterdir())
    ear.line.drop()
    await eventually(lambda: not log.exists(), WAIT)


async def test_a_long_state_directory_will_do(home: Home, open_keeper: Open) -> None:
    state_dir = home.path / ("very long " * 20)
    state_dir.mkdir(mode=0o700)
    keeper = await open_keeper(state_dir=state_dir)
    assert await keeper.kept() == {}


async def test_what_is_open_to_others_is_refused_with_the_remedy(
    home: Home, open_keeper: Open
) -> None:
    target = home.state_dir / "keeper"
    target.mkdir()
    target.chmod(0o755)
    with pytest.raises(KeeperUnavailable, match=f"chmod 0700 {target}"):
        await open_keeper()
    target.chmod(0o700)
    await open_keeper()


async def test_it_has_nothing_of_the_environment_that_it_does_not_need(
    home: Home, open_keeper: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "KERNELKEEP_TOKEN", "HTTPS_PROXY", "KUBECONFIG"):
        monkeypatch.setenv(name, "canary")
    keeper = await open_keeper()
    assert keeper.pid is not None
    environment = psutil.Process(keeper.pid).environ()
    assert "canary" not in environment.values()
    assert {"PATH", "PYTHONPATH"} <= set(environment)
    # A kernel has what it was launched with, and nothing that its parent has.
    await launch(keeper, home, "env", "bare")
    await ended(keeper, "bare")
    assert "canary" not in await keeper.tail("bare")


@pytest.fixture
def listen(home: Home) -> Any:
    """``listen(greeting, answers)``: somebody else on the keeper's socket."""
    servers = []

    async def listen(greeting: bytes, *answers: bytes) -> asyncio.AbstractServer:
        directory = home.state_dir / "keeper"
        directory.mkdir(mode=0o700)
        listener = socket.socket(socket.AF_UNIX)
        descriptor = os.open(directory, os.O_RDONLY)
        with socket_address(descriptor, directory) as address:
            listener.bind(address)
        (directory / "socket").chmod(0o600)
        os.close(descriptor)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(greeting)
            for answer in answers:
                await reader.read(1000)
                writer.write(answer)
            (directory / "socket").unlink(missing_ok=True)
            server.close()
            writer.close()

        server = await asyncio.start_unix_server(serve, sock=listener)
        servers.append(server)
        return server

    yield listen
    for server in servers:
        server.close()


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n\r\n", pack({"hello": 1})])
async def test_whoever_else_is_on_its_socket_is_refused(
    open_keeper: Open, listen: Any, greeting: bytes
) -> None:
    await listen(greeting)
    with pytest.raises(KeeperUnavailable, match="is no keeper"):
        await open_keeper()


@pytest.mark.parametrize("version", [2, PROTOCOL + 1], ids=["before", "newer"])
async def test_a_keeper_of_another_version_is_replaced_and_its_kernels_go_on(
    home: Home,
    open_keeper: Open,
    listen: Any,
    version: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    process = sleeping()
    try:
        record = {
            "kernel_id": "k",
            "pid": process.pid,
            "start_time": start_time(process.pid),
            "exit_code": None,
            "output": str(home.state_dir / "output" / "k.log"),
            "of later versions": 0,
        }
        over = {**record, "kernel_id": "over", "pid": 1, "exit_code": 3}
        await listen(pack({"keeper": version, "pid": 1}), pack({"answer": [record, over]}))
        with caplog.at_level(logging.WARNING):
            keeper = await open_keeper()
        assert [told.getMessage() for told in caplog.records] == [
            f"the keeper is of another version ({version}, not {PROTOCOL}), and is replaced"
        ]
        kept = await keeper.kept()
        assert (kept["k"].pid, kept["k"].exit_code) == (process.pid, None)
        assert await ended(keeper, "over") == 3
        process.terminate()
        assert process.wait(WAIT) == -signal.SIGTERM
        assert await ended(keeper) == UNKNOWN_EXIT
    finally:
        process.kill()
        process.wait()


async def test_ours_lets_go_of_its_kernels_when_it_is_drained(
    home: Home, open_keeper: Open
) -> None:
    keeper = await open_keeper()
    killed = keeper.pid
    kept = await launch(keeper, home, "exec sleep 1000")
    connection = socket.socket(socket.AF_UNIX)
    directory = os.open(home.state_dir / "keeper", os.O_RDONLY)
    with socket_address(directory, home.state_dir / "keeper") as address:
        connection.connect(address)
    os.close(directory)
    with aborted(await asyncio.open_unix_connection(sock=connection)) as (reader, writer):
        writer.write(pack({"ask": "drain", "reason": "of another version"}))
        told = await asyncio.wait_for(reader.read(), WAIT)
    assert json.dumps(kept.start_time).encode() in told

    async def is_watched_by_another() -> bool:
        return keeper.pid not in (None, killed) and (await keeper.kept())["k"].exit_code is None

    await eventually(is_watched_by_another, WAIT)
    assert is_alive(kept.pid)


async def test_kernels_that_have_ended_leave_it_nothing(home: Home, open_keeper: Open) -> None:
    keeper = await open_keeper()
    strangers = [sleeping() for _ in range(5)]
    process = psutil.Process(keeper.pid)

    async def once(stranger: subprocess.Popen[bytes]) -> None:
        await launch(keeper, home, "exit 0", "child")
        await ended(keeper, "child")
        started, output = start_time(stranger.pid), home.state_dir / "output" / "none.log"
        assert started is not None
        assert await keeper.adopt("stranger", stranger.pid, started, output)
        await keeper.signal("stranger", signal.SIGTERM)
        assert await ended(keeper, "stranger") == UNKNOWN_EXIT
        assert await asyncio.to_thread(stranger.wait, WAIT) == -signal.SIGTERM
        await keeper.forget("child")
        await keeper.forget("stranger")
        assert await keeper.kept() == {}

    await once(strangers[0])
    gc.collect()  # what an earlier test has left is not closed while this one counts
    before = process.num_fds(), os.listdir("/proc/self/fd")
    for stranger in strangers[1:]:
        await once(stranger)
    assert (process.num_fds(), os.listdir("/proc/self/fd")) == before
    assert process.children() == []


async def test_it_costs_next_to_nothing(home: Home, open_keeper: Open) -> None:
    keeper = await open_keeper()
    for number in range(3):
        await launch(keeper, home, "exec sleep 1000", f"k{number}")
    process = psutil.Process(keeper.pid)
    assert process.memory_info().rss < 40 * 2**20
    before = process.cpu_times()
    await asyncio.sleep(0.5)
    after = process.cpu_times()
    assert after.user + after.system - before.user - before.system < 0.05


def test_it_loads_neither_the_service_nor_what_that_needs() -> None:
    code = "import sys, app.keeper.main; print('\\n'.join(sys.modules))"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=WAIT
    )
    ours = {name for name in ran.stdout.split() if name.startswith("app.")}
    assert not {name for name in ours if not name.startswith(("app.keeper", "app.protocol"))}
    assert not {"fastapi", "pydantic", "jupyter_client", "tornado"} & {*ran.stdout.split()}
