"""Hearing a kernel: the order of what it says, whose it is, and requests that are sent once."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import zmq

from app.keeper import held_replies, requests
from app.keeper.channels import Channels
from app.keeper.hearing import MAX_SESSION, NOBODY, UNKNOWN_MESSAGES, UNTOLD_REQUESTS, Hearing
from app.keeper.hearings import Heard, Hearings
from app.keeper.log import LogRoom, LogWriter
from app.keeper.sockets import ConnectionInfo
from app.protocol import records
from app.protocol.compose import make_message
from app.protocol.messages import ClientMessage, Header, Message
from tests.support.processes import eventually

EPOCH = "0123456789abcdef"
OURS = "ours"


class Sockets:
    """To a kernel's process. The log is looked at when a request gets there."""

    stdin_connected = False

    def __init__(self, hearing: Ear) -> None:
        self.sent: list[str] = []
        self.takes = True
        self.unread = False
        self.closed = False
        self.expects_input = 0
        self.settled = 0
        self.arriving: list[Message] = []
        self.logged_before: list[list[str]] = []
        self._hearing = hearing

    def send(self, message: ClientMessage) -> bool:
        if self.takes:
            self.sent.append(message.header.msg_id)
            self.logged_before.append([row[0] for row in self._hearing.rows() if row[3]])
        return self.takes

    def expect_input(self) -> None:
        self.expects_input += 1

    def has_unread(self, channel: str) -> bool:
        return self.unread

    def drain(self) -> bool:
        arriving, self.arriving = self.arriving, []
        for message in arriving:
            self._hearing.on_message(message)
        return bool(arriving)

    def settle(self) -> bool:
        self.settled += 1
        return self.drain()

    def close(self) -> None:
        self.closed = True


class Ear(Hearing):
    """Hears a kernel over sockets that are the test's."""

    def __init__(self, directory: Path) -> None:
        self.changes = 0
        self.malformed: list[tuple[str, str, str]] = []
        room = LogRoom(2**24, 2**30, 3600.0)
        writer = LogWriter(directory, "k", room, EPOCH)
        writer.resume()
        writer.prepare()

        def on_change(_: Hearing) -> None:
            self.changes += 1

        super().__init__(1, "k", OURS, writer, on_change, lambda *told: self.malformed.append(told))

    def _open(
        self, context: Any, info: ConnectionInfo, turns: Any, *, everything: bool = False
    ) -> None:
        self.sockets = Sockets(self)
        self.opened_everything = everything
        self._channels = cast(Channels, self.sockets)

    def launched(self) -> None:
        """There is a new process."""
        self.connect(cast(Any, None), {}, cast(Any, None))

    def found(self) -> None:
        """There is a process that another keeper has heard."""
        self.connect_again(cast(Any, None), {}, cast(Any, None))

    def rows(self) -> list[tuple[str, int, str | None, bool]]:
        """What is in the log: types (ids of requests), numbers, owners, whether a request."""
        self.writer.flush()
        rows = []
        for record, owner, frame in self.writer.newest():
            message = Message(record.channel, frame)
            is_request = bool(record.flags & records.REQUEST)
            name = message.header.msg_id if is_request else message.header.msg_type
            rows.append((name, record.number, owner, is_request))
        return rows

    def said(self) -> list[tuple[str, str | None]]:
        """What the kernel or the server has said, in order, and whose it is."""
        return [(name, owner) for name, _, owner, is_request in self.rows() if not is_request]


@pytest.fixture
async def ear(tmp_path: Path) -> AsyncIterator[Ear]:
    ear = Ear(tmp_path / "k")
    ear.launched()
    yield ear
    ear.close()


def header_of(msg_id: str, msg_type: str, session: str) -> bytes:
    return json.dumps({"msg_id": msg_id, "msg_type": msg_type, "session": session}).encode()


def ask(
    ear: Ear,
    msg_id: str,
    msg_type: str = "execute_request",
    *,
    session: str = "client",
    channel: str = "shell",
) -> bytes:
    """A request of a session's; its header."""
    raw = header_of(msg_id, msg_type, session)
    message = ClientMessage(channel, Header(msg_id, msg_type, session), [raw, b"{}", b"{}", b"{}"])
    ear.request(message, session)
    return raw


def says(
    ear: Ear, msg_type: str, parent: bytes = b"{}", channel: str = "iopub", **content: Any
) -> None:
    ear.on_message(make_message(channel, msg_type, content, session="kernel", parent=parent))


def is_up(ear: Ear) -> None:
    """The kernel is ready, and has published something that it was asked for."""
    ear.opened = True
    says(ear, "status", header_of("probe", "kernel_info_request", OURS), execution_state="idle")


# In which order


async def test_a_reply_comes_behind_the_output_that_it_has_overtaken(ear: Ear) -> None:
    is_up(ear)
    parent = ask(ear, "1")
    says(ear, "status", parent, execution_state="busy")
    says(ear, "execute_reply", parent, "shell", status="ok")
    says(ear, "stream", parent, name="stdout", text="late")
    says(ear, "status", parent, execution_state="idle")
    names = [name for name, _ in ear.said()][1:]
    assert names == ["status", "stream", "execute_reply", "status"]
    assert ear.said()[3] == ("execute_reply", "client")
    numbers = [number for _, number, _, _ in ear.rows()]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_of_a_kernel_that_never_goes_idle_it_is_not_held_for_ever(
    ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_replies, "HOLD_SECONDS", 0.02)
    parent = ask(ear, "1")
    says(ear, "execute_reply", parent, "shell", status="ok")
    assert ("execute_reply", "client") not in ear.said()
    await eventually(lambda: ("execute_reply", "client") in ear.said())


async def test_of_two_replies_to_a_request_none_is_lost(ear: Ear) -> None:
    is_up(ear)
    parent = ask(ear, "1")
    says(ear, "execute_reply", parent, "shell", status="ok", execution_count=1)
    says(ear, "execute_reply", parent, "shell", status="ok", execution_count=2)
    says(ear, "status", parent, execution_state="idle")
    assert [name for name, _ in ear.said()][1:] == ["execute_reply", "execute_reply", "status"]


async def test_as_long_as_output_is_unread_it_is(ear: Ear, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held_replies, "HOLD_SECONDS", 0.01)
    monkeypatch.setattr(held_replies, "MAX_HOLD_SECONDS", 0.3)
    ear.sockets.unread = True
    parent = ask(ear, "1")
    says(ear, "execute_reply", parent, "shell", status="ok")
    await asyncio.sleep(0.1)
    assert ("execute_reply", "client") not in ear.said()
    await eventually(lambda: ("execute_reply", "client") in ear.said())


async def test_replies_of_a_process_that_has_ended_are_let_go(ear: Ear) -> None:
    parents = [ask(ear, name) for name in "12"]
    for parent in parents:
        says(ear, "execute_reply", parent, "shell", status="ok")
    last = make_message("iopub", "stream", {"text": "x"}, session="kernel", parent=parents[1])
    ear.sockets.arriving.append(last)
    ear.opened = True
    ear._is_new = False
    ear.disconnect()
    assert ear.said() == [("stream", None), *[("execute_reply", "client")] * 2]
    assert ear.sockets.closed
    assert not ear.connected


async def test_a_reply_of_the_process_before_does_not_come_when_the_next_one_is_heard(
    ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(held_replies, "HOLD_SECONDS", 0.01)
    says(ear, "execute_reply", ask(ear, "1", session="one"), "shell", status="ok")
    ear.launched()  # the keeper has not been told of the end of the one before
    says(ear, "execute_reply", ask(ear, "2", session="two"), "shell", status="ok")
    await eventually(lambda: ("execute_reply", "two") in ear.said())
    assert ("execute_reply", "one") not in ear.said()


async def test_a_held_reply_is_in_the_log_when_another_keeper_goes_on(
    ear: Ear, tmp_path: Path
) -> None:
    is_up(ear)
    says(ear, "execute_reply", ask(ear, "1"), "shell", status="ok")
    ear.close()
    another = Ear(tmp_path / "k")
    assert another.said()[-1] == ("execute_reply", "client")
    another.close()


# Whose it is


async def test_what_a_new_process_says_of_its_start_is_nobodys(ear: Ear) -> None:
    says(ear, "status", execution_state="starting")
    says(ear, "stream", name="stderr", text="debugger warnings")
    probe = header_of("probe", "kernel_info_request", OURS)
    says(ear, "status", probe, execution_state="busy")
    ear.opened = True
    says(ear, "stream", name="stdout", text="somebody's thread")
    owners = dict(ear.said()[:2])
    assert owners["stream"] == NOBODY
    assert ear.said()[-1] == ("stream", None)


async def test_output_of_a_clients_code_is_everybodys_whatever_became_of_the_word_that_it_is_ready(
    ear: Ear,
) -> None:
    parent = ask(ear, "1")
    says(ear, "status", parent, execution_state="busy")
    says(ear, "stream", parent, name="stdout", text="x")
    assert ear.said()[-1] == ("stream", None)


async def test_that_it_starts_is_nobodys_when_it_was_taken_for_ready(ear: Ear) -> None:
    says(ear, "status", execution_state="starting")
    is_up(ear)
    says(ear, "status", execution_state="starting")
    starts = [owner for name, owner in ear.said() if name == "status"]
    assert starts == [None, NOBODY, NOBODY]


async def test_what_it_says_of_our_own_requests_is_shown_to_no_client(ear: Ear) -> None:
    is_up(ear)
    before = len(ear.said())
    parent = ask(ear, "probe", "kernel_info_request", session=OURS)
    says(ear, "status", parent, execution_state="busy")
    says(ear, "kernel_info_reply", parent, "shell", status="ok")
    says(ear, "status", parent, execution_state="idle")
    assert {owner for _, owner in ear.said()[before:]} == {NOBODY}
    assert not any(is_request for _, _, _, is_request in ear.rows())


async def test_replies_and_questions_are_for_those_who_asked(ear: Ear) -> None:
    is_up(ear)
    before = len(ear.said())
    one, two = ask(ear, "1", session="one"), ask(ear, "1", "inspect_request", session="two")
    says(ear, "input_request", one, "stdin", prompt="?")
    says(ear, "inspect_reply", two, "shell", status="ok")
    says(ear, "inspect_reply", header_of("?", "inspect_request", "gone"), "shell", status="ok")
    says(ear, "inspect_reply", b"{}", "control", status="ok")
    assert ear.said()[before:] == [
        ("input_request", "one"),
        ("inspect_reply", "two"),
        ("inspect_reply", "gone"),
        ("inspect_reply", NOBODY),
    ]


@pytest.mark.parametrize("channel", ["shell", "control", "stdin"])
async def test_a_session_that_no_client_can_have_is_nobodys(ear: Ear, channel: str) -> None:
    is_up(ear)
    before = len(ear.said())
    for size in (MAX_SESSION, MAX_SESSION + 1, 2**16):
        parent = header_of("?", "inspect_request", "x" * size)
        says(ear, "inspect_reply", parent, channel, status="ok")
    owners = [owner for _, owner in ear.said()[before:]]
    assert owners == ["x" * MAX_SESSION, NOBODY, NOBODY]


# Requests


async def test_a_request_is_in_the_log_before_it_leaves(ear: Ear) -> None:
    for name in "123":
        ask(ear, name)
    ask(ear, "4", channel="control")
    assert ear.sockets.sent == ["1", "2", "3", "4"]
    assert ear.sockets.logged_before == [["1"], ["1", "2"], ["1", "2", "3"], ["1", "2", "3", "4"]]
    assert ear.taken == 4
    assert [(name, owner) for name, _, owner, is_request in ear.rows() if is_request] == [
        (name, "client") for name in "1234"
    ]


async def test_what_the_sockets_do_not_take_leaves_later_once_and_in_order(ear: Ear) -> None:
    ear.sockets.takes = False
    for name in "123":
        ask(ear, name)
    ask(ear, "4", "input_reply", channel="stdin")
    assert (ear.sockets.sent, ear.taken) == ([], 0)
    ear.on_writable()
    ear.sockets.takes = True
    ear.on_writable()
    ask(ear, "5")
    ear.on_writable()
    assert ear.sockets.sent == ["1", "2", "3", "4", "5"]
    assert ear.bell().taken == 5


async def test_of_what_waits_nothing_reaches_the_next_process(ear: Ear) -> None:
    ear.sockets.takes = False
    for name in "12":
        ask(ear, name)
    first = ear.sockets
    ear.disconnect()
    assert ear.taken == 2  # they never will be
    ask(ear, "3")  # there is no process
    assert ear.taken == 3
    ear.launched()
    ear.on_writable()
    assert first.sent + ear.sockets.sent == []
    ask(ear, "4")
    assert ear.sockets.sent == ["4"]


async def test_that_many_were_taken_is_told_for_its_own_sake(ear: Ear) -> None:
    ear.bell()
    before = ear.changes
    for number in range(UNTOLD_REQUESTS - 1):
        ask(ear, str(number))
    assert ear.changes == before
    ask(ear, "last")
    assert ear.changes == before + 1


# Another keeper


async def test_another_keeper_knows_from_the_log_to_whom_replies_go(tmp_path: Path) -> None:
    first = Ear(tmp_path / "k")
    first.launched()
    is_up(first)
    done, running, waiting = (ask(first, name, session=f"of {name}") for name in "123")
    says(first, "status", done, execution_state="busy")
    says(first, "execute_reply", done, "shell", status="ok")
    says(first, "status", done, execution_state="idle")
    says(first, "status", running, execution_state="busy")
    first.writer.flush()
    last = first.rows()[-1][1]
    first.close()

    second = Ear(tmp_path / "k")
    second.found()
    assert (second.opened, second.writer.epoch) == (True, EPOCH)
    assert len(second._requests) == 2
    says(second, "stream", running, name="stdout", text="x")
    says(second, "execute_reply", running, "shell", status="ok")
    says(second, "status", running, execution_state="idle")
    says(second, "input_request", waiting, "stdin", prompt="?")
    new = [row[:3] for row in second.rows() if row[1] > last]
    begin = last + UNKNOWN_MESSAGES + 1  # how much was said meanwhile is not known
    assert new == [
        ("stream", begin, None),
        ("execute_reply", begin + 1, "of 2"),
        ("status", begin + 2, None),
        ("input_request", begin + 3, "of 3"),
    ]
    assert second.sockets.sent == []  # each was sent once, before
    second.close()


async def test_the_ends_of_connections_are_waited_for_if_the_kernel_may_be_asked(
    tmp_path: Path,
) -> None:
    first = Ear(tmp_path / "k")
    first.launched()
    is_up(first)
    first.settle()
    assert first.sockets.settled == 0
    running = ask(first, "1")
    first.settle()
    assert first.sockets.settled == 1
    for size in (2**15, 2**17, 2**17, 2**19):  # the request lies before what the next keeper reads
        says(first, "stream", running, name="stdout", text="x" * size)
        first.writer.flush()
    first.close()

    second = Ear(tmp_path / "k")
    second.found()
    assert len(second._requests) == 0
    second.settle()
    assert second.sockets.settled == 1
    second.launched()
    second.settle()
    assert second.sockets.settled == 0
    second.close()


async def test_the_ends_are_waited_for_if_requests_were_forgotten(
    ear: Ear, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "MAX_REQUESTS", 1)
    is_up(ear)
    forgotten, known = ask(ear, "forgotten"), ask(ear, "known")
    says(ear, "status", known, execution_state="idle")
    says(ear, "execute_reply", known, "shell", status="ok")
    assert len(ear._requests) == 0
    says(ear, "stream", forgotten, name="stdout", text="x")
    ear.settle()
    assert ear.sockets.settled == 1


async def test_of_a_log_that_has_nothing_nothing_is_missing(tmp_path: Path) -> None:
    ear = Ear(tmp_path / "k")
    ear.found()
    assert ear.bell().end[0] == 1
    ear.close()


async def test_a_kernel_for_which_no_descriptors_are_left_is_heard_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hearings = Hearings(lambda bells: None, lambda *malformed: None)
    info = {"transport": "ipc", "ip": str(tmp_path / "k"), "key": ""}
    info |= {f"{channel}_port": "1" for channel in ("iopub", "shell", "control", "stdin")}

    def hear() -> Heard:
        log = tmp_path / "log"
        return hearings.hear("k", session=OURS, epoch=EPOCH, directory=log, info=info, anew=True)

    def no_descriptors(channels: Channels, socket: zmq.Socket[bytes], channel: str) -> None:
        raise zmq.ZMQError(errno.EMFILE)

    try:
        with monkeypatch.context() as patched:
            patched.setattr(Channels, "_connect", no_descriptors)
            with pytest.raises(OSError, match="no sockets to the kernel: Too many open") as raised:
                hear()
        # By this number the server knows that the start may be tried again.
        assert raised.value.errno == errno.EMFILE
        assert hear().connected
    finally:
        hearings.close()


async def test_a_log_goes_on_for_the_next_process(ear: Ear) -> None:
    is_up(ear)
    ear.disconnect()
    ear.say("iopub", make_message("iopub", "status", {}, session=OURS).frame, None, 0)
    ear.launched()
    assert not ear.opened
    says(ear, "stream", name="stderr", text="of its start")
    assert ear.said()[-2:] == [("status", None), ("stream", NOBODY)]
    ear.remove()
    assert not ear.writer.directory.exists()


async def test_stdin_is_for_what_clients_run(ear: Ear) -> None:
    assert not ear.opened_everything
    ear.found()
    assert not ear.opened_everything, "nothing was asked of it"
    ask(ear, "probe", "kernel_info_request", session=OURS)
    ask(ear, "stop", "shutdown_request", channel="control")
    assert ear.sockets.expects_input == 0
    ask(ear, "code")
    assert ear.sockets.expects_input == 1
    # A process that another keeper has heard may be asking for input now.
    ear.found()
    assert ear.opened_everything
