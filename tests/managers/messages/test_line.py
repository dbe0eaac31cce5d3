"""The line to who hears a kernel: what may be on its way, and what it tells."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import pytest

from app.keeper.channels import Channels
from app.keeper.hearings import Heard
from app.managers.errors import KernelUnreachable
from app.managers.messages.line import WINDOW, WINDOW_BYTES, Line
from app.protocol.compose import make_message
from app.protocol.link import Bell
from app.protocol.messages import ClientMessage, Header
from app.settings import Settings
from tests.managers.local_hearer import LocalHearer
from tests.support.processes import eventually

EPOCH = "0123456789abcdef"


class Owner:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.bells: list[Bell] = []
        self.heard: list[Heard] = []
        self.lost: list[str] = []
        self.writable = 0

    def on_bell(self, bell: Bell) -> None:
        self.bells.append(bell)

    def on_writable(self) -> None:
        self.writable += 1

    def on_heard(self, heard: Heard) -> None:
        self.heard.append(heard)

    def on_lost(self, why: str) -> None:
        self.lost.append(why)

    def on_malformed(self, count: int, channel: str, reason: str) -> None:
        raise AssertionError("nothing malformed comes here")


class Sockets:
    """To a kernel that takes requests as long as it is to."""

    stdin_connected = True

    def __init__(self) -> None:
        self.takes = True
        self.sent: list[ClientMessage] = []

    def send(self, message: ClientMessage) -> bool:
        if self.takes:
            self.sent.append(message)
        return self.takes

    def drain(self) -> bool:
        return False

    def expect_input(self) -> None:
        pass

    def has_unread(self, channel: str) -> bool:
        return False

    def close(self) -> None:
        pass


@pytest.fixture
async def hearer() -> AsyncIterator[LocalHearer]:
    hearer = LocalHearer(Settings(_cli_parse_args=False))
    yield hearer
    hearer.close()


async def line_of(
    hearer: LocalHearer, directory: Path, kernel_id: str = "k"
) -> tuple[Line, Owner, Sockets]:
    owner, sockets = Owner(), Sockets()
    line = Line(hearer, kernel_id, "ours", EPOCH, owner)
    await line.hear(directory / kernel_id, None)
    hearing = hearer._hearings.get(kernel_id)
    assert hearing is not None
    hearing._channels = cast(Channels, sockets)
    return line, owner, sockets


def request(number: int, channel: str = "shell", size: int = 0) -> ClientMessage:
    header = Header(str(number), "comm_msg", "client")
    raw = b'{"msg_id": "%d", "msg_type": "comm_msg", "session": "client"}' % number
    return ClientMessage(channel, header, [raw, b"{}", b"{}", b"{}", bytes(size)])


async def test_no_more_is_on_its_way_than_the_window_has(
    hearer: LocalHearer, tmp_path: Path
) -> None:
    line, owner, sockets = await line_of(hearer, tmp_path)
    sockets.takes = False
    assert all(line.send(request(number), "client") for number in range(WINDOW))
    assert not line.send(request(WINDOW), "client")
    assert owner.writable == 0
    sockets.takes = True
    hearing = hearer._hearings.get("k")
    assert hearing is not None
    hearing.on_writable()
    await eventually(lambda: owner.writable)
    assert owner.bells[-1].taken == WINDOW
    assert line.send(request(WINDOW), "client")
    assert [message.header.msg_id for message in sockets.sent] == [
        str(number) for number in range(WINDOW + 1)
    ]


async def test_nor_more_bytes_but_one_request_may_be_larger(
    hearer: LocalHearer, tmp_path: Path
) -> None:
    line, owner, sockets = await line_of(hearer, tmp_path)
    sockets.takes = False
    assert line.send(request(0, size=2 * WINDOW_BYTES), "client")
    assert not line.send(request(1), "client")
    sockets.takes = True
    hearing = hearer._hearings.get("k")
    assert hearing is not None
    hearing.on_writable()
    await eventually(lambda: owner.writable)
    assert line.send(request(1), "client")


async def test_what_is_taken_is_told_although_the_kernel_says_nothing(
    hearer: LocalHearer, tmp_path: Path
) -> None:
    line, owner, sockets = await line_of(hearer, tmp_path)
    sent = 0
    while sent < 3 * WINDOW:
        if line.send(request(sent), "client"):
            sent += 1
        else:
            await eventually(lambda: owner.writable)
            owner.writable = 0
    for number in range(20):
        if not line.send(large := request(sent + number, size=WINDOW_BYTES // 3), "client"):
            owner.writable = 0
            await eventually(lambda: owner.writable)
            assert line.send(large, "client")
    assert len(sockets.sent) == sent + 20


@pytest.mark.parametrize("channel", ["control", "stdin"])
@pytest.mark.parametrize("size", [0, WINDOW_BYTES // 8])
async def test_an_interrupt_does_not_wait_behind_code_that_the_kernel_does_not_take(
    hearer: LocalHearer, tmp_path: Path, channel: str, size: int
) -> None:
    line, _, sockets = await line_of(hearer, tmp_path)
    sockets.takes = False
    number = 0
    while line.send(request(number, size=size), "client"):
        number += 1
    assert line.send(request(number, channel), "client")
    for more in range(2 * WINDOW):  # which has its bound too
        if not line.send(request(number + more, channel, size), "client"):
            break
    else:
        raise AssertionError("there is no bound")


async def test_bells_of_others_are_not_heard(hearer: LocalHearer, tmp_path: Path) -> None:
    line, owner, _ = await line_of(hearer, tmp_path)
    _, other, _ = await line_of(hearer, tmp_path, "other")
    line.say(make_message("iopub", "status", {}, session="ours"))
    await eventually(lambda: owner.bells)
    assert owner.bells[-1].end[0] == 2
    assert not other.bells
    hearer._ring([owner.bells[-1]._replace(handle=7)])  # of nobody
    assert len(owner.bells) == 1


async def test_another_who_hears_it_owes_nothing_of_before(
    hearer: LocalHearer, tmp_path: Path
) -> None:
    line, owner, sockets = await line_of(hearer, tmp_path)
    sockets.takes = False
    while line.send(request(0), "client"):
        pass
    line.on_heard(owner.heard[0])
    assert line.send(request(1), "client")


async def test_a_log_that_cannot_be_had_is_told(hearer: LocalHearer, tmp_path: Path) -> None:
    (tmp_path / "k").write_text("no directory")
    line = Line(hearer, "k", "ours", EPOCH, Owner())
    with pytest.raises(KernelUnreachable):
        await line.hear(tmp_path / "k", None)


async def test_what_is_said_last_is_told_before_the_log_goes(
    hearer: LocalHearer, tmp_path: Path
) -> None:
    line, owner, _ = await line_of(hearer, tmp_path)
    line.say(make_message("iopub", "status", {}, session="ours"))
    line.drop()
    assert owner.bells[-1].end[0] == 2
    assert not (tmp_path / "k").exists()
    line.say(make_message("iopub", "status", {}, session="ours"))  # to nobody
    line.send(request(0), "client")
