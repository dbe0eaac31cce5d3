"""Real keepers that dial in, with fake kernels: what becomes of them, and of what is under way.

These are the tests of `app.keeper.joined`, `app.keeper.joining` and `app.keeper.dialling`, and of
`app.managers.processes.keeper.remote_keepers` for them.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.keeper.joining import Document, NotInvited
from app.keeper.processes import UNKNOWN_EXIT
from app.managers.errors import KeeperUnavailable
from app.managers.messages.traffic import Traffic
from app.managers.processes.hosts.errors import HostUnusable
from app.managers.processes.hosts.joined_place import JoinedPlace
from app.managers.processes.keeper.keepers import Keepers
from app.managers.processes.keeper.remote import RemoteKeeper
from tests.keeper.conftest import WAIT, Client, ended
from tests.support.home import Home
from tests.support.joined import LOGS, JoinedService, connect, speak, start_keeper
from tests.support.processes import eventually

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
async def service(home: Home) -> AsyncIterator[JoinedService]:
    async with JoinedService(home.path / "service") as service:
        yield service


@pytest.fixture
async def start(home: Home) -> AsyncIterator[Start]:
    """``start(document)``: a keeper that joins; it is killed in the end if it is there."""
    started: list[subprocess.Popen[bytes]] = []

    def start(document: bytes, *arguments: str) -> subprocess.Popen[bytes]:
        process = start_keeper(document, *arguments, env=home.environment(), stderr=subprocess.PIPE)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        await asyncio.to_thread(process.communicate)
    for left in home.processes():
        left.kill()


async def log_of(process: subprocess.Popen[bytes]) -> str:
    """All that a keeper has logged, once it has ended."""
    _, said = await asyncio.to_thread(process.communicate, timeout=WAIT)
    return said.decode()


async def joined(
    service: JoinedService, start: Start, home: Home, keeper_id: str = "k"
) -> tuple[RemoteKeeper, Traffic, subprocess.Popen[bytes]]:
    """A keeper that has joined, and a kernel of it that is ready."""
    invitation = await service.joining.invite(keeper_id)
    process = start(invitation.document)
    keeper = service.keeper(keeper_id)
    return keeper, await speak(keeper, home, keeper_id), process


async def next_service(service: JoinedService) -> JoinedService:
    """Another server of the same state directory, where keepers find it."""
    return JoinedService(service.directory, service.port)


async def test_it_runs_code_and_ends_with_its_last_kernel(
    service: JoinedService, start: Start, home: Home
) -> None:
    keeper, traffic, process = await joined(service, start, home)
    assert keeper.pid == process.pid
    client = Client(traffic)
    await client.ran("append done once")
    assert (home.root_dir / "done").read_text() == "once\n"
    assert keeper.host.python == sys.executable
    assert keeper.host.env["HOME"] == str(home.home_dir)
    files = {path.name: path for path in home.path.rglob("credential.pem")}
    assert stat.S_IMODE(files["credential.pem"].stat().st_mode) == 0o600
    os.killpg((await keeper.kept())["k"].pid, signal.SIGKILL)
    assert await ended(keeper) == -signal.SIGKILL
    await keeper.forget("k")
    keeper.drop("k")
    await eventually(lambda: keeper.is_empty, WAIT)
    await keeper.retire()
    # It would dial again, if its service were gone without a word.
    text = await log_of(process)
    assert process.returncode in (0, 3)
    assert "PRIVATE" not in text
    assert not list(home.path.rglob("credential.pem"))


async def test_the_next_service_has_all_that_was_said_and_each_request_once(
    service: JoinedService, start: Start, home: Home
) -> None:
    keeper, traffic, process = await joined(service, start, home)
    client = Client(traffic)
    await client.ran("append done once")
    client.run("flood 300 20000")
    await eventually(lambda: client.text("10 ") > 0, WAIT)
    record = (await keeper.kept())["k"]
    info, epoch = traffic._line.info, traffic._line.epoch
    await service.kill()
    async with await next_service(service) as later:
        again = later.keeper("k")
        assert await again.adopt("k", record.pid, record.start_time, Path(record.output))
        assert info is not None
        resumed = await connect(again, home, "k", info)
        assert resumed._line.epoch == epoch
        client = Client(resumed)
        await client.ran("append done twice")
        assert (home.root_dir / "done").read_text() == "once\ntwice\n"
        assert process.poll() is None
        await again.end("k")


async def test_a_link_that_breaks_in_mid_output_loses_and_repeats_nothing(
    service: JoinedService, start: Start, home: Home
) -> None:
    keeper, traffic, _ = await joined(service, start, home)
    client = Client(traffic)
    asked = client.run("flood 400 20000")
    for number in (50, 100, 200):
        await eventually(lambda: client.text("") >= number, WAIT)  # noqa: B023
        if (link := keeper._connection.link) is not None:
            link.abort()
    await eventually(lambda: client.has_ended(asked), WAIT)
    said = [
        json.loads(bytes(entry.message.part(3)))["text"].split()[0]
        for entry in client.look()
        if entry.message.msg_type == "stream"
    ]
    assert said == [str(number) for number in range(1, 401)]
    assert client.gaps == []
    await keeper.end("k")


async def test_a_keeper_that_was_replaced_ends_what_it_has(
    service: JoinedService, start: Start, home: Home
) -> None:
    keeper, _, process = await joined(service, start, home)
    kernel = psutil.Process((await keeper.kept())["k"].pid)
    await service.joining.invite("k")  # another job is about to be submitted
    text = await log_of(process)
    assert process.returncode == 3
    assert "keeper_replaced" in text
    assert not kernel.is_running()
    assert not list(home.path.rglob("credential.pem"))


async def test_one_that_is_not_invited_says_why_and_leaves(
    service: JoinedService, start: Start
) -> None:
    invitation = await service.joining.invite("k", seconds=0)
    process = start(invitation.document)
    text = await log_of(process)
    assert process.returncode == 3
    assert "join_secret_expired" in text
    assert json.loads(invitation.document)["secret"] not in text


async def test_a_secret_that_a_keeper_has_used_lets_no_second_one_in(
    service: JoinedService, start: Start, home: Home
) -> None:
    invitation = await service.joining.invite("k")
    start(invitation.document)
    keeper = service.keeper("k")
    await keeper.connect()
    second = start(invitation.document)
    assert "join_secret_used" in await log_of(second)
    assert second.returncode == 3
    assert keeper.is_connected


async def test_sigterm_ends_the_kernels_and_then_the_keeper(
    service: JoinedService, start: Start, home: Home
) -> None:
    keeper, _, process = await joined(service, start, home)
    kernel = psutil.Process((await keeper.kept())["k"].pid)
    process.terminate()
    await asyncio.wait_for(asyncio.shield(keeper.exited("k")), WAIT)
    await log_of(process)
    assert process.returncode == 0
    assert not kernel.is_running()


async def test_it_trusts_nobody_but_its_own_service(
    service: JoinedService, start: Start, home: Home
) -> None:
    invitation = await service.joining.invite("k")
    document = json.loads(invitation.document)
    async with JoinedService(home.path / "pretender") as pretender:
        document["addresses"] = [f"127.0.0.1:{pretender.port}", *document["addresses"]]
        process = start(json.dumps(document).encode())
        keeper = service.keeper("k")
        await keeper.connect()  # at the second address
        assert keeper.pid == process.pid
        assert not pretender.joining.has_come("k")


async def test_addresses_are_tried_in_turn_until_one_answers(
    service: JoinedService, start: Start
) -> None:
    invitation = await service.joining.invite("k", addresses=["127.0.0.1:1", "nowhere.invalid:1"])
    start(invitation.document)
    await service.keeper("k").connect()


async def test_the_document_may_be_a_file_and_the_directory_the_callers(
    service: JoinedService, home: Home
) -> None:
    invitation = await service.joining.invite("k")
    file = home.path / "document.json"
    file.write_bytes(invitation.document)
    directory = home.path / "own"
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "app.keeper", "--join", file, "--directory", directory],
        env={"PYTHONPATH": os.getcwd(), **home.environment()},
        stderr=subprocess.PIPE,
    )
    keeper = service.keeper("k")
    await keeper.connect()
    assert (directory / "keeper" / "credential.pem").exists()
    second = subprocess.run(  # noqa: ASYNC221
        [sys.executable, "-m", "app.keeper", "--join", file, "--directory", directory],
        env={"PYTHONPATH": os.getcwd(), **home.environment()},
        capture_output=True,
        text=True,
    )
    assert second.returncode == 3
    assert "another keeper has this directory" in second.stderr
    # One that is started anew there shows what the one before was given.
    process.kill()
    await log_of(process)
    process = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-m", "app.keeper", "--join", file, "--directory", directory],
        env={"PYTHONPATH": os.getcwd(), **home.environment()},
        stderr=subprocess.PIPE,
    )
    keeper.connect_soon()
    await eventually(lambda: keeper.pid == process.pid, WAIT)
    process.kill()
    await log_of(process)


async def test_a_keeper_that_is_silent_for_three_beats_dials_anew(
    service: JoinedService, start: Start, home: Home
) -> None:
    """What is sent to it is lost, as when a router forgets the connection."""
    keeper, traffic, _ = await joined(service, start, home)
    link = keeper._connection.link
    assert link is not None
    link._next_beat.cancel()  # type: ignore[attr-defined]
    await eventually(lambda: keeper._connection.link not in (None, link), WAIT)
    await Client(traffic).ran("print x")
    await keeper.end("k")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"join": 2}, "another version"),
        ({"keeper": None}, "keeper"),
        ({"secret": ""}, "secret"),
        ({"authority": 7}, "authority"),
        ({"server_name": ""}, "server_name"),
        ({"addresses": []}, "no addresses"),
        ({"addresses": "a:1"}, "no addresses"),
        ({"addresses": ["a:1"] * 65}, "no addresses"),
        ({"addresses": ["a"]}, "host:port"),
        ({"addresses": ["a:0"]}, "host:port"),
        ({"addresses": ["a:65536"]}, "host:port"),
        ({"addresses": ["a:²"]}, "host:port"),
        ({"addresses": [":1"]}, "host:port"),
    ],
)
def test_a_document_that_is_of_no_use_is_told(change: dict[str, Any], why: str) -> None:
    good = {"join": 1, "keeper": "k", "secret": "s", "authority": "a", "addresses": ["[::1]:80"]}
    assert Document(json.dumps(good).encode()).addresses == [("::1", 80)]
    with pytest.raises(NotInvited, match=why):
        Document(json.dumps({**good, **change}).encode())
    with pytest.raises(NotInvited, match="makes no sense"):
        Document(b"{}" if not change else json.dumps({"join": 1}).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"\xff", b"[" * 10_000, b"x" * 70_000])
async def test_what_is_no_document_ends_the_keeper(start: Start, data: bytes) -> None:
    process = start(data)
    assert "the join document cannot be used" in await log_of(process)
    assert process.returncode == 3


async def test_nobody_can_be_asked_while_it_is_away(
    service: JoinedService, start: Start, home: Home
) -> None:
    keeper, _, process = await joined(service, start, home)
    process.send_signal(signal.SIGSTOP)
    await eventually(lambda: not keeper.is_connected, WAIT)
    with pytest.raises(KeeperUnavailable, match="cannot be reached"):
        await keeper.signal("k", signal.SIGINT)
    process.send_signal(signal.SIGCONT)
    await eventually(lambda: keeper.is_connected, WAIT)
    await keeper.end("k")


async def test_a_kernel_whose_job_has_ended_is_dead_without_waiting_for_its_keeper(
    service: JoinedService, start: Start, home: Home
) -> None:
    keeper, _, process = await joined(service, start, home)
    process.kill()
    await eventually(lambda: not keeper.is_connected, WAIT)
    service.joining.fail("k", HostUnusable("job 17 has ended: OUT_OF_MEMORY"))
    keeper.declare_ended("k", "job 17 has ended: OUT_OF_MEMORY")
    keeper.declare_ended("k", "a later reason, of an end that is known")
    assert await ended(keeper) == UNKNOWN_EXIT
    async with asyncio.timeout(WAIT / 3):  # a wait for the keeper would take longer
        assert not await keeper.settle("k")
        await keeper.disconnect("k")
        assert await keeper.tail("k") == "job 17 has ended: OUT_OF_MEMORY"
    # The next generation has the same log, and goes on with its numbers.
    await keeper.forget("k")
    invitation = await service.joining.invite("k")
    start(invitation.document)
    traffic = await speak(keeper, home, "k")
    await Client(traffic).ran("print x")
    assert not keeper.exited("k").done()
    await keeper.end("k")


async def test_the_keeper_of_a_kernel_that_was_given_up_is_told_to_end_by_any_later_server(
    service: JoinedService, start: Start, home: Home
) -> None:
    options = {**LOGS, "orphan_timeout": 3600.0, "output_bytes": 10_000}
    keepers = Keepers(home.state_dir, **options)
    keepers.remote.assign("k", "where", lambda: JoinedPlace(service.joining, "k", "lab k"))
    process = start((await service.joining.invite("k")).document)
    keeper = keepers.remote._keepers["where"]
    traffic = await speak(keeper, home, "k")
    kernel = psutil.Process((await keeper.kept())["k"].pid)
    assert not keepers.remote.give_up("k", "it can be asked")
    process.send_signal(signal.SIGSTOP)
    await eventually(lambda: not keeper.is_connected, WAIT)
    assert keepers.remote.give_up("k", "nobody waits for it")
    assert await ended(keeper) == UNKNOWN_EXIT
    await traffic.close("")
    await keeper.forget("k")
    keepers.drop("k")
    await eventually(lambda: not keepers.remote.all, WAIT)
    await keepers.close()
    await service.close()
    async with await next_service(service):
        process.send_signal(signal.SIGCONT)
        assert "keeper_forgotten" in await log_of(process)
        assert process.returncode == 3
        assert not kernel.is_running()


async def test_a_kernel_of_this_machine_is_not_given_up(home: Home) -> None:
    options = {**LOGS, "orphan_timeout": 3600.0, "output_bytes": 10_000}
    keepers = Keepers(home.state_dir, **options)
    assert not keepers.remote.give_up("k", "it is here")
    with pytest.raises(ValueError, match="stays here"):
        keepers.remote.declare_ended("k", "it is here")
    await keepers.close()
