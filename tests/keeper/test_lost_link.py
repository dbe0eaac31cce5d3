"""What a server says, asks and gives up while there is no keeper, or while one ends: all of it
comes to be, once and in order, as soon as there is a keeper again.

These are the tests of `app.keeper.servers`, and of `app.managers.processes.keeper.errands` and
`app.managers.processes.keeper.lines` on the server's side.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.keeper.hearings import Heard
from app.keeper.protocol import Garbled
from app.managers.errors import KeeperUnavailable
from app.managers.log.message_log import Entry
from app.managers.messages import reading
from app.managers.processes.keeper import client, connection, link, places, starting
from app.managers.processes.keeper.client import Keeper
from app.managers.processes.keeper.lines import Lines
from app.managers.processes.keeper.link import KeeperLink, KeeperRefuses
from app.managers.state import Lifecycle
from app.protocol.compose import make_message, make_parts
from app.protocol.messages import ClientMessage
from tests.keeper.conftest import CLIENT, EPOCH, WAIT, Ear, Open, Speak, launch
from tests.support.home import Home
from tests.support.keeper_relay import Cut, Relay, Side
from tests.support.processes import eventually


class NoKeepers:
    """Within, no keeper can be started."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self._patch = patch
        patch.setattr(connection, "RETRY_SECONDS", 0.1)
        patch.setattr(connection, "SOON_SECONDS", 0.1)

    def __enter__(self) -> None:
        def refuse(*_: Any) -> None:
            raise OSError("nothing can be started")

        self._before = starting.execute_keeper
        self._patch.setattr(places, "execute_keeper", refuse)

    def __exit__(self, *_: object) -> None:
        self._patch.setattr(places, "execute_keeper", self._before)


@pytest.fixture
def no_keepers(monkeypatch: pytest.MonkeyPatch) -> NoKeepers:
    return NoKeepers(monkeypatch)


async def kill(keeper: Keeper) -> None:
    """Kill the keeper's process; returns when the connection to it is gone."""
    pid = keeper.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    await eventually(lambda: keeper.pid != pid, WAIT)


def cut(keeper: Keeper) -> None:
    """End the connection, and nothing else, if there is one just now."""
    if keeper._connection.link is not None:
        keeper._connection.link._transport.abort()


async def test_what_is_said_while_there_is_no_keeper_is_said_by_the_next(
    open_keeper: Open, speak: Speak, no_keepers: NoKeepers
) -> None:
    keeper = await open_keeper()
    client = await speak(keeper)
    with no_keepers:
        await kill(keeper)
        client.traffic.voice.announce("first")
        client.traffic._state.begin(Lifecycle.DEAD, "of a test")
        refused = client.run("print never")
        client.traffic.voice.announce("last")
        await asyncio.sleep(0.3)
        assert client.told == []
    await eventually(lambda: client.told == ["first", "last"], WAIT)
    assert client.has_reply(refused)
    client.traffic._state.lifecycle = Lifecycle.RUNNING
    await client.ran("print on")
    assert client.told == ["first", "last"]
    assert len(client.traffic.voice._unsaid) == 0


async def test_what_a_keeper_was_told_and_has_not_read_when_it_was_killed_is_said_by_the_next(
    open_keeper: Open, speak: Speak
) -> None:
    keeper = await open_keeper()
    client = await speak(keeper)
    assert keeper.pid is not None
    os.kill(keeper.pid, signal.SIGSTOP)
    for number in range(3):
        client.traffic.voice.announce(f"state {number}")
    await kill(keeper)
    await eventually(lambda: client.told == ["state 0", "state 1", "state 2"], WAIT)
    await client.ran("print on")
    assert client.told == ["state 0", "state 1", "state 2"]


async def test_nothing_is_said_or_asked_twice_or_out_of_order_when_only_the_link_breaks(
    home: Home, open_keeper: Open, speak: Speak, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "SOON_SECONDS", 0.0)
    keeper = await open_keeper()
    client = await speak(keeper)
    said, asked = [], []
    for turn in range(12):
        for number in range(3):
            said.append(f"state {turn}.{number}")
            client.traffic.voice.announce(said[-1])
            asked.append(f"{turn}.{number}")
            client.run(f"append cells {asked[-1]}")
            if number == 1:
                cut(keeper)
            if turn % 2:
                await asyncio.sleep(0)
        await asyncio.sleep(0.01 * (turn % 4))
    await client.ran("print on")
    assert client.told == said
    assert (home.root_dir / "cells").read_text().split() == asked
    assert not client.gaps


async def test_what_is_in_the_log_and_was_not_read_yet_is_not_sent_again(
    home: Home, open_keeper: Open, speak: Speak, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "MESSAGES_PER_TURN", 1)
    keeper = await open_keeper()
    client = await speak(keeper)
    assert keeper.pid is not None
    os.kill(keeper.pid, signal.SIGSTOP)
    for number in range(5):
        client.traffic.voice.announce(f"state {number}")
    request = client.run("append cells once")
    cut(keeper)
    os.kill(keeper.pid, signal.SIGCONT)
    await eventually(lambda: client.has_reply(request), WAIT)
    await client.ran("append cells then")
    assert (home.root_dir / "cells").read_text().split() == ["once", "then"]
    assert client.told == [f"state {number}" for number in range(5)]


async def test_code_that_waits_here_when_the_keeper_is_killed_leaves_once(
    home: Home, open_keeper: Open, speak: Speak
) -> None:
    keeper = await open_keeper()
    client = await speak(keeper)
    client.run("print begun\nuntil go")
    await eventually(lambda: client.text("begun"), WAIT)
    client.traffic.interrupts.before()  # code waits from now on until that has ended
    client.run("append cells once")
    await kill(keeper)
    await eventually(lambda: keeper.pid is not None, WAIT)
    (home.root_dir / "go").touch()
    await client.ran("append cells then")
    assert (home.root_dir / "cells").read_text().split() == ["once", "then"]


async def test_an_answer_to_a_prompt_comes_although_there_was_no_keeper(
    open_keeper: Open, speak: Speak, no_keepers: NoKeepers
) -> None:
    keeper = await open_keeper()
    client = await speak(keeper)
    await client.traffic.stdin_connected()
    request = client.run("input name?", allow_stdin=True)

    def prompts() -> list[Entry]:
        return [e for e in client.look() if e.message.msg_type == "input_request"]

    (prompt,) = await eventually(prompts, WAIT)
    with no_keepers:
        await kill(keeper)
        header, parts = make_parts("input_reply", {"value": "Ada"}, CLIENT)
        parts[1] = bytes(prompt.message.part(0))
        assert client.traffic.submit(ClientMessage("stdin", header, parts), CLIENT)
        await asyncio.sleep(0.3)
    await eventually(lambda: client.has_ended(request), WAIT)
    assert client.text("Ada") == 1


@pytest.mark.parametrize("seen", [False, True], ids=["just killed", "link is lost"])
async def test_a_log_that_is_dropped_while_there_is_no_keeper_goes_with_the_next(
    home: Home, open_keeper: Open, no_keepers: NoKeepers, seen: bool
) -> None:
    keeper = await open_keeper()
    gone, other = Ear(keeper), Ear(keeper, "other")
    for ear in (gone, other):
        await ear.line.hear(home.path / ear.line.kernel_id, None)
        ear.line.say(make_message("iopub", "status", {}, session="ours"))
    await eventually(lambda: gone.next == other.next == 2, WAIT)
    with no_keepers:
        assert keeper.pid is not None
        if seen:
            await kill(keeper)
        else:
            os.kill(keeper.pid, signal.SIGKILL)
        gone.line.drop()
        await asyncio.sleep(0.3)
        assert (home.path / "k").exists()
    await eventually(lambda: not (home.path / "k").exists(), WAIT)
    await eventually(lambda: len(other.heard) == 2, WAIT)
    assert list((home.path / "other").glob("*.log"))
    assert not keeper._errands._dropped


@pytest.mark.parametrize("side", ["before", "after"])
async def test_a_log_whose_drop_was_lost_with_the_link_goes_and_is_not_heard(
    home: Home, open_keeper: Open, side: Side
) -> None:
    other = await open_keeper()  # by which the keeper can be seen when the relay is gone
    lost = asyncio.Event()

    async def step(at: Side, ask: str) -> None:
        if (at, ask) == (side, "drop") and not lost.is_set():
            lost.set()
            raise Cut

    async with Relay(home.state_dir, step):
        keeper = await open_keeper()
        assert keeper.pid == other.pid
        ear = Ear(keeper)
        await ear.line.hear(home.path / "log", None)
        ear.line.say(make_message("iopub", "status", {}, session="ours"))
        await eventually(lambda: ear.next == 2, WAIT)
        ear.line.drop()
        await lost.wait()
        await keeper.kept()
        await eventually(lambda: not (home.path / "log").exists(), WAIT)
        with pytest.raises(KeeperUnavailable, match="is not heard"):
            await keeper._connection.ask("open", kernel_id="k")
        # Another kernel with the same id keeps what it has.
        again = Ear(keeper)
        await again.line.hear(home.path / "log", None)
        again.line.say(make_message("iopub", "status", {}, session="ours"))
        await eventually(lambda: again.next == 2, WAIT)
        cut(keeper)
        await keeper.kept()
        assert list((home.path / "log").glob("*.log"))
        await keeper.close()


def newest(log: Path) -> Path:
    """The file that was written last."""
    return max(log.glob("*.log"))


def all_of_another_version(log: Path) -> None:
    for file in log.glob("*.log"):
        file.write_bytes(b"kklog002" * 9)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "directory": shutil.rmtree,
    "newest": lambda log: newest(log).unlink(),
    "cut": lambda log: os.truncate(newest(log), 2000),
    "head": lambda log: newest(log).write_bytes(b"\xff" * 5000),
    "another version": all_of_another_version,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
async def test_a_log_that_is_damaged_when_its_keeper_is_killed_goes_on_behind_a_gap(
    home: Home,
    open_keeper: Open,
    speak: Speak,
    no_keepers: NoKeepers,
    damage: Callable[[Path], object],
) -> None:
    """No number is given twice: a client that has come further would wait for ever."""
    keeper = await open_keeper()
    client = await speak(keeper)
    await client.ran("flood 300 1000")
    seen = [entry.seq for entry in client.look()]
    assert len(sorted((home.path / "log").glob("*.log"))) > 1
    with no_keepers:
        await kill(keeper)
        damage(home.path / "log")
    # What is asked before that may have left, as far as anybody can tell.
    await eventually(lambda: keeper.pid is not None, WAIT)
    await client.ran("print on")
    numbers = [entry.seq for entry in client.look()]
    assert numbers == sorted({*numbers})
    assert numbers[: len(seen)] == seen
    assert client.text("on") >= 1
    assert client.gaps, "what nobody has heard is announced"
    assert all(gap.messages > 0 and gap.bytes >= 0 for gap in client.gaps)


# What a server knows of a keeper


async def test_a_keeper_that_hangs_is_known_by_one_question(
    open_keeper: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "SILENT_SECONDS", 0.05)
    keeper = await open_keeper()
    connected = keeper._connection.link
    assert connected is not None
    assert keeper.problem() == ""
    await eventually(lambda: not connected._asked, WAIT)
    os.kill(connected.pid, signal.SIGSTOP)
    await eventually(keeper.problem, WAIT)
    assert keeper.problem() == "the keeper of kernels does not answer"
    assert len(connected._asked) == 1
    os.kill(connected.pid, signal.SIGCONT)
    await eventually(lambda: keeper.problem() == "", WAIT)


async def test_a_keeper_that_could_not_be_had_is_a_problem_until_there_is_one(
    open_keeper: Open, no_keepers: NoKeepers
) -> None:
    keeper = await open_keeper()
    await kill(keeper)
    assert keeper.problem() == ""  # nobody has needed one yet
    with no_keepers:
        with pytest.raises(KeeperUnavailable):
            await keeper.connect()
        assert "nothing can be started" in keeper.problem()
    await eventually(lambda: keeper.problem() == "", WAIT)
    assert keeper.is_connected


class Keen:
    """A connection that is there; the keeper answers when the test says so."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.retried: list[Any] = []

    async def linked(self) -> Keen:
        return self

    async def ask(self, *_: Any, **__: Any) -> tuple[Any, bytes]:
        self.asked.set()
        return await self.answer, b""

    def retry(self, *what: Any) -> None:
        self.retried.append(what)


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_kernel_that_goes_while_it_is_heard_late_does_not_come_back(
    home: Home, caplog: pytest.LogCaptureFixture, *, refuses: bool
) -> None:
    keen: Any = Keen()
    lines = Lines(keen)
    line = Ear(keen).line
    line.remember(home.path / "log", None)
    lines._by_id["k"] = line
    lines._hear_late("k")
    await keen.asked.wait()
    lines.pop("k")
    if refuses:
        keen.answer.set_exception(KeeperRefuses("of a test"))
    else:
        told = Heard("k", 1, "ours", EPOCH, (1, 0), (1, 0), (1, 64), 0, False, False)
        keen.answer.set_result(msgspec.to_builtins(told))
    await asyncio.wait(lines._late)
    assert "k" not in lines
    assert keen.retried == []
    assert caplog.text == ""


async def test_a_kernel_that_has_come_anew_keeps_its_log_when_its_earlier_keeper_dies(
    home: Home, open_keeper: Open, no_keepers: NoKeepers
) -> None:
    first, second = await open_keeper(), Keeper(home.path / "second", orphan_timeout=60)
    with no_keepers:
        second.drop("k")
        second.drop("gone")
        ear = Ear(first)
        await ear.line.hear(home.path / "log", None)
        await first.take_from(second, [])
        await eventually(lambda: not first._errands, WAIT)
        assert [*(home.path / "log").glob("*.log")]
        await second.close()


async def test_a_keeper_has_a_kernel_until_it_has_removed_the_log(
    home: Home, open_keeper: Open
) -> None:
    keeper = await open_keeper()
    ear = Ear(keeper)
    await ear.line.hear(home.path / "log", None)
    assert keeper.pid is not None
    os.kill(keeper.pid, signal.SIGSTOP)
    keeper.drop("k")
    has = await keeper.has("k")
    os.kill(keeper.pid, signal.SIGCONT)
    assert has
    await eventually(lambda: not keeper._errands, WAIT)
    assert not await keeper.has("k")


async def test_a_keeper_that_ends_as_it_is_greeted_is_looked_for_again_at_once(
    home: Home, open_keeper: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "RETRY_SECONDS", WAIT)
    keeper = await open_keeper()
    begin, begun = keeper._begin, []

    def break_once(link: KeeperLink, *more: Any) -> None:
        begun.append(link)
        if len(begun) == 1:
            link.abort()
            keeper._errands.end("k", pid=1)  # which is told to whoever is there
        begin(link, *more)

    monkeypatch.setattr(keeper, "_begin", break_once)
    cut(keeper)
    await eventually(lambda: not keeper.is_connected, WAIT)
    keeper.connect_soon()
    await eventually(lambda: len(begun) == 2, WAIT / 2)
    await eventually(lambda: not keeper._errands, WAIT)


async def test_a_launch_that_is_answered_by_nonsense_is_ended(
    home: Home, open_keeper: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nonsense(*_: Any) -> None:
        raise Garbled("of a test")

    keeper = await open_keeper()
    monkeypatch.setattr(client, "kept_of", nonsense)
    with pytest.raises(Garbled, match="of a test"):
        await launch(keeper, home, "exec sleep 100")
    await eventually(lambda: not keeper._errands, WAIT)
    assert await keeper.kept() == {}


async def test_a_kernel_that_is_forgotten_while_it_is_ended_is_no_fault(
    home: Home, open_keeper: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeper = await open_keeper()
    await launch(keeper, home, "exec sleep 100")
    signalled = keeper.signal

    async def forget_too(kernel_id: str, number: int) -> None:
        await signalled(kernel_id, number)
        await keeper.forget(kernel_id)

    monkeypatch.setattr(keeper, "signal", forget_too)
    await keeper.end("k")
    await eventually(lambda: not keeper._errands, WAIT)
    assert await keeper.kept() == {}


class Broken:
    """What finds a keeper, and has a bug."""

    def __init__(self) -> None:
        self.asked = 0

    async def find(self) -> KeeperLink:
        self.asked += 1
        raise KeyError("of a test")

    async def greet(self, _link: KeeperLink) -> Callable[[], None]:
        raise AssertionError


async def test_a_bug_does_not_end_the_attempts_to_find_a_keeper(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(connection, "RETRY_SECONDS", 0.05)
    broken = Broken()
    lost = connection.Connection(broken, WAIT)
    with pytest.raises(KeeperUnavailable, match="cannot be used: KeyError"):
        await lost.linked()
    lost.recover_soon()
    await eventually(lambda: broken.asked > 3, WAIT)
    await lost.close()
    told = [record.exc_info[0] for record in caplog.records if record.exc_info]
    assert told == [KeyError, KeyError]  # once when it was asked for, and once of all attempts
