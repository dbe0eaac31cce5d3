"""Keepers of several versions in one state directory, as one server sees them.

These are the tests of `app.managers.processes.keeper.older_keepers`, too.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from app.keeper.notes import LAUNCHING
from app.keeper.processes import start_time
from app.keeper.protocol import (
    PROTOCOL,
    Fields,
    aside_dirs,
    keeper_dir,
    new_aside_dir,
    open_dir,
    pack,
    receive,
)
from app.managers.errors import IsolationUnavailable, KeeperUnavailable
from app.managers.processes.keeper import link as keeper_link
from app.managers.processes.keeper.client import Keeper
from app.managers.processes.keeper.keepers import Keepers
from app.managers.processes.keeper.kept import Kept
from app.managers.processes.keeper.places import AsidePlace, NewestPlace
from tests.keeper.conftest import EPOCH, Ear, launch
from tests.support.home import Home
from tests.support.processes import eventually, is_alive, kill_all

WAIT = 30  # seconds
REPOSITORY = Path(__file__).parents[2]


class Before:
    """A keeper of the version before, and a server of that version."""

    def __init__(self, home: Home) -> None:
        self._home = home

    async def start(self) -> Process:
        """Start the keeper; returns when it listens."""
        module = "tests.support.versions.keeper"
        arguments = (str(PROTOCOL - 1), str(self._home.state_dir))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, *arguments), cwd=REPOSITORY, stdout=PIPE
        )
        assert process.stdout is not None
        assert await asyncio.wait_for(process.stdout.readline(), WAIT) == b"ready\n"
        return process

    async def launch(self, *kernel_ids: str) -> list[Kept]:
        """Have processes launched by the keeper, as that server would, which is gone then."""
        place = AsidePlace(self._home.state_dir, keeper_dir(self._home.state_dir))
        keeper = Keeper(self._home.state_dir, orphan_timeout=3600, place=place)
        kept = [await launch(keeper, self._home, "exec sleep 1000", each) for each in kernel_ids]
        await keeper.close()
        return kept


@pytest.fixture
def before(home: Home) -> Before:
    (home.state_dir / "output").mkdir(mode=0o700)
    return Before(home)


Make = Callable[..., Keepers]


@pytest.fixture
async def make_keepers(home: Home) -> AsyncIterator[Make]:
    """A server's way to the keepers of its state directory."""
    made: list[Keepers] = []

    def make_keepers(**options: Any) -> Keepers:
        made.append(Keepers(home.state_dir, orphan_timeout=3600, **options))
        return made[-1]

    yield make_keepers
    await asyncio.gather(*(keepers.close() for keepers in made))
    kill_all(home.processes())


@pytest.mark.parametrize("is_aside", [False, True], ids=["first", "killed behind the renaming"])
async def test_what_a_server_does_with_two_keepers(
    home: Home, before: Before, make_keepers: Make, is_aside: bool
) -> None:
    older = await before.start()
    (kept,) = await before.launch("k")
    if is_aside:  # by a server that was killed then
        directory = new_aside_dir(home.state_dir, PROTOCOL - 1)
        keeper_dir(home.state_dir).rename(directory)
    keepers = make_keepers()
    assert {**await keepers.kept()} == {"k": kept}
    assert keepers.pid != older.pid
    new = await keepers.launch("new", ["sleep", "1000"], env={}, cwd="/", output=home.path / "o")
    assert set(await keepers.kept()) == {"k", "new"}
    output = home.state_dir / "output" / "kernel-k.log"
    assert await keepers.adopt("k", kept.pid, kept.start_time, output) == kept
    assert [keepers.is_newest_for(each) for each in ("k", "new")] == [False, True]

    await keepers.signal("k", signal.SIGTERM)
    assert await asyncio.wait_for(asyncio.shield(keepers.exited("k")), WAIT) == -signal.SIGTERM
    again = await keepers.launch("k", ["sleep", "1000"], env={}, cwd="/", output=output)
    assert again.pid != kept.pid
    await keepers.forget("k")
    assert await asyncio.wait_for(older.wait(), WAIT) == 0
    await eventually(lambda: not aside_dirs(home.state_dir), WAIT)
    assert (is_alive(again.pid), is_alive(new.pid)) == (False, True)
    await keepers.end("new")
    assert await keepers.kept() == {}


async def test_an_older_keeper_launches_nothing_that_it_could_not_isolate(
    home: Home, before: Before, make_keepers: Make
) -> None:
    """As it would ignore the field, and launch the kernel as its own user."""
    older = await before.start()
    (kept,) = await before.launch("k")
    keepers = make_keepers()
    output = home.state_dir / "output" / "kernel-k.log"
    assert await keepers.adopt("k", kept.pid, kept.start_time, output) == kept
    await keepers.signal("k", signal.SIGKILL)
    await asyncio.wait_for(asyncio.shield(keepers.exited("k")), WAIT)
    fields: list[Fields] = [{"as_user": {"uid": 5, "gid": 5, "home": "/"}}, {"arguments": []}]
    for field in fields:
        with pytest.raises(IsolationUnavailable, match="is an earlier one"):
            await keepers.launch("k", ["sleep", "1000"], env={}, cwd="/", output=output, **field)
    assert (await keepers.kept())["k"].exit_code == -signal.SIGKILL
    await keepers.forget("k")
    assert await asyncio.wait_for(older.wait(), WAIT) == 0


async def test_the_bound_on_logs_is_for_all_keepers_together(
    home: Home, before: Before, make_keepers: Make
) -> None:
    """As a keeper is told, again whenever one comes or ends."""
    await before.start()
    await before.launch("k")
    keepers = make_keepers(log_total_bytes=10**6)
    await keepers.kept()
    clients = (keepers._newest, *keepers._older.all)
    assert [each._options["log_total_bytes"] for each in clients] == [500_000, 500_000]
    await keepers.end("k")
    await eventually(lambda: not keepers._older.all, WAIT)
    assert keepers._newest._options["log_total_bytes"] == 10**6


@pytest.mark.parametrize("launched", [True, False], ids=["launched", "just launching"])
async def test_the_processes_of_an_older_keeper_that_was_killed_are_known_by_its_notes(
    home: Home, before: Before, make_keepers: Make, launched: bool
) -> None:
    older = await before.start()
    (kept,) = await before.launch("k")
    keepers = make_keepers()
    await keepers.kept()
    await keepers.close()
    older.kill()
    await older.wait()
    if not launched:  # it was killed between the launch and the next note
        (directory,) = aside_dirs(home.state_dir)
        *_, last = (directory / "kept").read_text().splitlines()
        kernel_id, _, _, output = json.loads(last)
        (directory / "kept").write_text(json.dumps([kernel_id, LAUNCHING, "", output]) + "\n")
    keepers = make_keepers()
    assert (await keepers.kept())["k"].pid == kept.pid
    await eventually(lambda: not aside_dirs(home.state_dir), WAIT)
    await keepers.end("k")
    assert not is_alive(kept.pid)


async def test_requests_that_are_under_way_when_an_older_keeper_is_killed_go_to_the_newest(
    home: Home, before: Before, make_keepers: Make
) -> None:
    older = await before.start()
    (kept,) = await before.launch("k")
    keepers = make_keepers()
    output = home.state_dir / "output" / "kernel-k.log"
    await keepers.adopt("k", kept.pid, kept.start_time, output)
    ear = Ear(keepers)
    await ear.line.hear(home.path / "log", None)
    exited = keepers.exited("k")
    os.kill(older.pid, signal.SIGSTOP)
    asked = asyncio.ensure_future(keepers.settle("k"))
    restarted = asyncio.ensure_future(keepers.tail("k"))
    older.kill()
    await older.wait()
    assert await asyncio.wait_for(asked, WAIT) is False
    await asyncio.wait_for(restarted, WAIT)
    await eventually(lambda: len(ear.heard) == 2, WAIT)
    assert ear.heard[1].epoch == EPOCH
    assert (keepers.is_newest_for("k"), exited.done()) == (True, False)
    os.kill(kept.pid, signal.SIGKILL)
    await asyncio.wait_for(asyncio.shield(exited), WAIT)
    ear.line.drop()
    await keepers.forget("k")
    assert await keepers.kept() == {}


async def test_a_keeper_that_is_asked_to_hear_a_kernel_anew_is_not_left(
    home: Home, before: Before, make_keepers: Make
) -> None:
    """The kernel has the id of the last one of an older keeper, which has its log still."""
    older = await before.start()
    (kept,) = await before.launch("k")
    keepers = make_keepers()
    output = home.state_dir / "output" / "kernel-k.log"
    await keepers.adopt("k", kept.pid, kept.start_time, output)
    ear = Ear(keepers)
    await ear.line.hear(home.path / "log", None)
    await keepers.forget("k")
    (home_of_k,) = keepers._older.all
    await eventually(lambda: not home_of_k._errands, WAIT)
    os.kill(older.pid, signal.SIGSTOP)
    ear.line.drop()
    anew = Ear(keepers)
    hearing = asyncio.ensure_future(anew.line.hear(home.path / "log", None))
    await eventually(lambda: not keepers.is_newest_for("k"), WAIT)
    os.kill(older.pid, signal.SIGCONT)
    await asyncio.wait_for(hearing, WAIT)
    await keepers._settled()
    await keepers.settle("k")
    assert [heard.end[0] for heard in anew.heard] == [1]
    assert not keepers.is_newest_for("k")
    anew.line.drop()
    assert await asyncio.wait_for(older.wait(), WAIT) == 0


async def test_a_directory_that_somebody_has_copied_is_left_alone(
    home: Home, make_keepers: Make
) -> None:
    copy = home.state_dir / "keeper.old"
    copy.mkdir(mode=0o755)
    keepers = make_keepers()
    assert await keepers.kept() == {}
    assert copy.exists()


class FalseKeeper:
    """Listens where a keeper was set aside, and says what the test wants."""

    def __init__(self, home: Home) -> None:
        self.directory = home.state_dir / f"keeper.{PROTOCOL - 1}.1"
        self.greets = asyncio.Event()
        self.greeting: Fields = {"keeper": PROTOCOL - 1, "pid": os.getpid()}
        self.answers: dict[str, Any] = {"hello": [], "kept": []}
        self.asked: list[str] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self.directory.mkdir(mode=0o700)
        (self.directory / "lock").touch(0o600)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.directory / "socket"))
        (self.directory / "socket").chmod(0o600)
        self._server = await asyncio.start_unix_server(self._serve, sock=listener)

    def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self.greets.wait()
            writer.write(pack(self.greeting))
            while True:
                fields, _ = await receive(reader)
                self.asked.append(fields["ask"])
                refusal = {"error": f"kernel {fields.get('kernel_id')} is not heard"}
                answer = {"answer": self.answers[fields["ask"]]}
                told = answer if fields["ask"] in self.answers else refusal
                writer.write(pack({"id": fields["id"], **told}))
        except (OSError, asyncio.IncompleteReadError, KeyError):
            pass
        finally:
            writer.close()


GREETING = 3.0  # seconds for which a greeting is waited for; a launch takes less


@pytest.fixture
async def false_keeper(home: Home, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FalseKeeper]:
    monkeypatch.setattr(keeper_link, "ANSWER_SECONDS", GREETING)
    (home.state_dir / "output").mkdir(mode=0o700)
    keeper = FalseKeeper(home)
    await keeper.start()
    yield keeper
    keeper.close()


async def test_one_that_does_not_greet_costs_new_kernels_nothing_and_may_do_so_later(
    home: Home, false_keeper: FalseKeeper, make_keepers: Make, caplog: pytest.LogCaptureFixture
) -> None:
    keepers = make_keepers()
    process = await asyncio.create_subprocess_exec("sleep", "1000", start_new_session=True)
    started = start_time(process.pid)
    assert started is not None
    false_keeper.answers["hello"] = [
        {
            "kernel_id": "left",
            "pid": process.pid,
            "start_time": started,
            "exit_code": None,
            "output": str(home.path / "o"),
        }
    ]
    assert await keepers.kept() == {}
    async with asyncio.timeout(GREETING):
        ear = Ear(keepers, "new")
        await ear.line.hear(home.path / "new", None)
        await keepers.launch("new", ["sleep", "1000"], env={}, cwd="/", output=home.path / "o")
    # Which keeper has a kernel that was left is not known, and so nobody else gets it.
    with pytest.raises(KeeperUnavailable, match="says nothing"):
        await keepers.adopt("left", process.pid, started, home.path / "o")
    (home.path / "left").mkdir()
    with pytest.raises(KeeperUnavailable, match="says nothing"):
        await Ear(keepers, "left").line.hear(home.path / "left", None)
    assert set(await keepers.kept()) == {"new"}
    complaints = [each for each in caplog.messages if "kernels have no keeper" in each]
    assert len(complaints) <= 1

    false_keeper.greets.set()
    false_keeper.answers["adopt"] = false_keeper.answers["hello"][0]
    kept = await keepers.adopt("left", process.pid, started, home.path / "o")
    assert kept is not None
    assert not keepers.is_newest_for("left")
    process.kill()
    await process.wait()
    ear.line.drop()
    await keepers.end("new")  # it has no environment by which its home would find it


LIES: dict[str, Callable[[FalseKeeper], None]] = {
    "no version": lambda keeper: keeper.greeting.pop("keeper"),
    "version of words": lambda keeper: keeper.greeting.update(keeper="three"),
    "no pid": lambda keeper: keeper.greeting.pop("pid"),
    "pid of words": lambda keeper: keeper.greeting.update(pid="one"),
    "answer of another version": lambda keeper: keeper.answers.update(
        hello={"kept": [], "heard": []}
    ),
    "no list": lambda keeper: keeper.answers.update(hello=7),
    "half a kernel": lambda keeper: keeper.answers.update(hello=[{"kernel_id": "k"}]),
    "refusal": lambda keeper: keeper.answers.pop("hello"),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
async def test_one_that_lies_is_left_alone_and_the_newest_goes_on(
    home: Home,
    false_keeper: FalseKeeper,
    make_keepers: Make,
    lie: Callable[[FalseKeeper], None],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(AsidePlace, "patience", 2.0)
    lie(false_keeper)
    false_keeper.greets.set()
    keepers = make_keepers()
    with caplog.at_level(logging.WARNING):
        assert await keepers.kept() == {}
        with pytest.raises(KeeperUnavailable):
            await keepers.adopt("left", 1, "0", home.path / "o")
    assert not any(each.exc_info for each in caplog.records)
    kept = await keepers.launch("k", ["sleep", "1000"], env={}, cwd="/", output=home.path / "o")
    assert is_alive(kept.pid)
    assert false_keeper.directory.exists()
    await keepers.end("k")


async def test_one_that_says_that_it_is_of_a_version_far_away_is_drained(
    home: Home, false_keeper: FalseKeeper, make_keepers: Make, caplog: pytest.LogCaptureFixture
) -> None:
    false_keeper.greeting["keeper"] = 99
    false_keeper.answers["drain"] = []
    false_keeper.greets.set()
    keepers = make_keepers()
    with caplog.at_level(logging.WARNING):
        assert await keepers.kept() == {}
    assert false_keeper.asked == ["drain"]
    assert f"of another version (99, not {PROTOCOL})" in caplog.text
    await eventually(lambda: not false_keeper.directory.exists(), WAIT)


async def test_what_an_older_keeper_has_is_told_before_a_kernel_is_taken_for_new(
    home: Home, before: Before, make_keepers: Make
) -> None:
    """The keeper of the version before is still in the newest's place when that is first asked."""
    await before.start()
    (kept,) = await before.launch("k")
    keepers = make_keepers()
    output = home.state_dir / "output" / "kernel-k.log"
    found: list[Kept | None] = await asyncio.gather(
        *(keepers.adopt("k", kept.pid, kept.start_time, output) for _ in range(5))
    )
    assert found == [kept] * 5
    assert not keepers.is_newest_for("k")
    await keepers.end("k")
    assert not is_alive(kept.pid)


async def test_a_keeper_that_another_replica_has_just_set_aside_is_known_and_no_other_is(
    home: Home,
) -> None:
    directory = open_dir(home.state_dir)
    aside = new_aside_dir(home.state_dir, PROTOCOL - 1)

    class Link:
        protocol, pid = PROTOCOL - 1, 1

        async def close(self) -> None:
            """Meanwhile the other replica is faster, and starts a keeper of its own."""
            keeper_dir(home.state_dir).rename(aside)
            os.close(open_dir(home.state_dir))

    known: list[Path] = []
    link: Any = Link()
    await NewestPlace(home.state_dir)._set_aside(link, directory, known.append)
    os.close(directory)
    assert known == [aside]
    assert keeper_dir(home.state_dir).exists()
