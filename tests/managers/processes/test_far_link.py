"""A link to a keeper on another host, and the mirrors that come over it.

These are the tests of `app.managers.processes.keeper.far_link` and
`app.managers.processes.keeper.mirrors`.
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import pytest

from app.keeper.hearings import Heard
from app.keeper.protocol import Fields, Garbled, pack
from app.managers.errors import KeeperUnavailable
from app.managers.processes.keeper import far_link, mirrors
from app.managers.processes.keeper.far_link import FarLink
from app.managers.processes.keeper.link import KeeperLink
from app.managers.processes.keeper.mirrors import CREDIT_BYTES, Mirrors
from app.protocol.link import Bell, pack_records, unpack_credit, unpack_follow
from app.protocol.records import pack_record
from tests.support.processes import eventually

EPOCH = "0123456789abcdef"

HEARD = Heard("k", 7, "ours", EPOCH, (1, 0), (1, 0), (1, 64), 0, connected=True, opened=False)


class Owner:
    """Notes what a link tells."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.ended = asyncio.Event()

    def on_event(self, _fields: Fields) -> None: ...

    def on_bells(self, data: bytes) -> None:
        self.frames.append(data)

    def on_end(self, _link: KeeperLink) -> None:
        self.ended.set()


class Far:
    """What listens in the place of a keeper, with a clock of its own."""

    def __init__(self) -> None:
        self.greeting: Fields = {"keeper": 4, "pid": 1, "now": time.monotonic() - 5000}
        self.says: bytes | None = None
        self.answers = True
        self.asked: list[bytes] = []
        self._server: asyncio.Server | None = None
        self._port = 0
        self._writer: asyncio.StreamWriter | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        writer.write(pack(self.greeting) if self.says is None else self.says)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while self.says != b"":
                (size,) = struct.unpack("!I", await reader.readexactly(4))
                frame = await reader.readexactly(size)
                self.asked.append(frame)
                if self.answers:
                    writer.write(struct.pack("!I", size) + frame)
        writer.close()

    async def say(self, data: bytes) -> None:
        assert self._writer is not None
        self._writer.write(data)
        await self._writer.drain()

    async def connect(self, owner: Owner) -> FarLink | None:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        return await FarLink.over(reader, writer, owner)

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()


@pytest.fixture
async def far(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Far]:
    monkeypatch.setattr(far_link, "BEAT_SECONDS", 0.05)
    far = Far()
    await far.start()
    yield far
    await far.close()


async def test_a_link_lives_while_there_are_signs_of_life_and_ends_without(far: Far) -> None:
    owner = Owner()
    link = await far.connect(owner)
    assert link is not None
    with suppress(TimeoutError):
        async with asyncio.timeout(0.5):
            await owner.ended.wait()
    assert link.is_open
    assert len(far.asked) > 5
    assert owner.frames == []  # heartbeats are nobody's
    far.answers = False
    async with asyncio.timeout(5):
        await owner.ended.wait()
    assert not link.is_open
    await link.close()


async def test_links_are_asked_at_moments_that_they_share(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(far_link, "BEAT_SECONDS", 1.0)
    link = await far.connect(Owner())
    assert link is not None
    await eventually(lambda: far.asked)
    moment = link._next_beat.when()  # type: ignore[attr-defined]  # a TimerHandle by now
    assert moment * far_link.SLOTS == pytest.approx(round(moment * far_link.SLOTS))
    await link.close()


async def test_bounds_are_told_by_the_clock_of_the_keeper(far: Far) -> None:
    link = await far.connect(Owner())
    assert link is not None
    asked = asyncio.create_task(link.ask({"ask": "kept"}, 2.0))
    await eventually(lambda: any(b"kept" in frame for frame in far.asked))
    asks = [frame for frame in far.asked if b"kept" in frame]
    until = msgspec.json.decode(asks[0][4:])["until"]
    assert until - (time.monotonic() - 5000) == pytest.approx(2, abs=1)
    asked.cancel()
    await link.close()


@pytest.mark.parametrize(
    "greeting", [{"keeper": 4, "pid": 1}, {"keeper": 4, "pid": 1, "now": "noon"}, {"now": 1.0}]
)
async def test_what_is_no_such_keeper_is_refused(far: Far, greeting: Fields) -> None:
    far.greeting = greeting
    with pytest.raises(Garbled):
        await far.connect(Owner())


async def test_one_that_hangs_up_is_about_to_end_and_one_that_is_silent_is_told(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    far.says = b""
    assert await far.connect(Owner()) is None
    far.says = b"\0"
    monkeypatch.setattr("app.managers.processes.keeper.link.ANSWER_SECONDS", 0.1)
    with pytest.raises(Garbled, match="says nothing"):
        await far.connect(Owner())


@pytest.mark.parametrize("now", [float("nan"), float("inf"), 1e13, 10**400])
async def test_a_clock_that_cannot_be_is_refused(far: Far, now: float) -> None:
    far.greeting["now"] = now
    with pytest.raises(Garbled, match="clock makes no sense"):
        await far.connect(Owner())


async def test_a_keeper_that_floods_is_cut_off(
    far: Far, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(far_link, "BEAT_SECONDS", 30.0)
    monkeypatch.setattr(far_link, "FRAMES", 100)
    owner = Owner()
    link = await far.connect(owner)
    assert link is not None
    await far.say(pack({}, b"H") * 90)
    await eventually(lambda: link._frames > 80)
    assert link.is_open
    await far.say(pack({}, b"H") * 20)
    async with asyncio.timeout(30):
        await owner.ended.wait()
    assert "floods" in caplog.text


async def test_a_frame_that_is_too_long_is_not_waited_for(far: Far) -> None:
    owner = Owner()
    link = await far.connect(owner)
    assert link is not None
    await far.say(struct.pack("!II", far_link.FAR_FRAME_BYTES + 1, 2) + b"{}")
    async with asyncio.timeout(30):
        await owner.ended.wait()


# Mirrors


class Sent:
    """What is sent to the keeper."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []

    def __call__(self, pieces: Any) -> None:
        self.frames.append(b"".join(map(bytes, pieces)))


@pytest.fixture
async def sent() -> Sent:
    return Sent()


@pytest.fixture
async def kept(sent: Sent) -> AsyncIterator[Mirrors]:
    kept = Mirrors(sent, each=2**24, together=2**30, age=3600.0)
    yield kept
    kept.close()


def piece(number: int, offset: int, frame: bytes = b"frame", *, anew: bool = True) -> bytes:
    record = pack_record(number, offset, 1.0, "iopub", None, 1, frame)
    return pack_records(7, anew, b"".join(map(bytes, record)))


def heard(end: tuple[int, int], **more: Any) -> Heard:
    return msgspec.structs.replace(HEARD, end=end, **more)


async def test_a_mirror_follows_and_tells_how_far_it_is(
    kept: Mirrors, sent: Sent, tmp_path: Path
) -> None:
    assert kept.known("k", tmp_path) == (1, 0)
    found = kept.begin(tmp_path, heard((3, 10)))
    assert (found.end, found.ahead) == ((1, 0), 3)
    assert unpack_follow(sent.frames[-1]) == (7, 1, CREDIT_BYTES)
    whole = asyncio.create_task(kept.whole(found))
    await asyncio.sleep(0)
    grown = kept.on_records(piece(1, 0))
    assert grown is not None
    assert grown[1].end == (2, 5)
    assert not whole.done()
    kept.on_records(piece(2, 5))
    assert (await whole).end == (3, 10)
    told = kept.on_bell("k", Bell(7, (1, 0), (9, 90), (1, 500), 4))
    assert (told.end, told.taken) == ((3, 10), 4)
    # Another link: it goes on where the mirror ends, and half a record there is forgotten.
    kept.on_records(piece(3, 10)[:-3])
    again = kept.begin(tmp_path, heard((4, 15), handle=8))
    assert (again.end, again.ahead) == ((3, 10), 4)
    assert unpack_follow(sent.frames[-1]) == (8, 3, CREDIT_BYTES)
    assert kept.on_records(piece(3, 10)) is None  # of a handle that means nothing any more


async def test_credit_is_given_back_as_it_is_used(
    kept: Mirrors, sent: Sent, tmp_path: Path
) -> None:
    kept.begin(tmp_path, HEARD)
    frame = bytes(CREDIT_BYTES // 8)
    for number in range(1, 5):
        kept.on_records(piece(number, (number - 1) * len(frame), frame))
    credits = [unpack_credit(frame) for frame in sent.frames[1:]]
    assert sum(size for _, size in credits) > CREDIT_BYTES // 2
    assert len(credits) == 2


async def test_more_than_the_credit_is_refused(kept: Mirrors, tmp_path: Path) -> None:
    kept.begin(tmp_path, HEARD)
    with pytest.raises(Garbled, match="more of its log comes than was asked for"):
        kept.on_records(piece(1, 0, bytes(CREDIT_BYTES)))
    kept.begin(tmp_path, HEARD)
    with pytest.raises(Garbled, match="more of its log comes"):
        kept.on_records(pack_records(7, True, b""))


async def test_a_keeper_that_lies_is_not_believed(kept: Mirrors, tmp_path: Path) -> None:
    kept.begin(tmp_path, HEARD)
    kept.on_records(piece(1, 0))
    with pytest.raises(Garbled, match="makes no sense"):
        kept.on_records(piece(1, 0))
    # An answer that was overtaken by the record behind it is no lie.
    assert kept.begin(tmp_path, HEARD).end == (2, 5)
    with pytest.raises(ValueError, match="no frame"):
        kept.on_records(b"L")


async def test_another_log_replaces_the_mirror_of_the_one_before(
    kept: Mirrors, sent: Sent, tmp_path: Path
) -> None:
    kept.begin(tmp_path, HEARD)
    kept.on_records(piece(1, 0))
    found = kept.begin(tmp_path, heard((6, 50), epoch="fedcba9876543210", first=(5, 40)))
    assert (found.first, found.end, found.ahead) == ((5, 40), (5, 40), 6)
    assert unpack_follow(sent.frames[-1]).after == 5
    names = [name for name in os.listdir(tmp_path) if name.endswith(".log")]
    assert names == ["00000000000000000005.log"]


async def test_a_mirror_that_begins_late_at_another_keeper_leaves_the_others_alone(
    kept: Mirrors, tmp_path: Path
) -> None:
    for kernel_id, handle in (("a", 6), ("b", 7)):
        kept.begin(tmp_path / kernel_id, heard((1, 0), kernel_id=kernel_id, handle=handle))
    # The next keeper counts anew, hears one of them at once, and the other later.
    kept.begin(tmp_path / "a", heard((1, 0), kernel_id="a", handle=7))
    kept.begin(tmp_path / "b", heard((1, 0), kernel_id="b", handle=8))
    grown = kept.on_records(piece(1, 0))
    assert grown is not None
    assert grown[0] == "a"
    kept.alone("b", tmp_path / "b", "ours")
    kept.remove("b")
    assert kept.on_records(piece(2, 5)) is not None


async def test_the_next_server_goes_on_with_it(kept: Mirrors, tmp_path: Path) -> None:
    kept.begin(tmp_path, HEARD)
    kept.on_records(piece(1, 0))
    kept.close()
    after = Mirrors(lambda _: None, each=2**24, together=2**30, age=3600.0)
    assert after.known("k", tmp_path) == (2, 5)
    found = after.begin(tmp_path, heard((9, 50), first=(4, 20)))
    assert (found.first, found.end) == ((1, 0), (4, 20))  # two are lost, and known to be
    after.remove("k")
    after.remove("k")
    assert tmp_path.name not in os.listdir(tmp_path.parent)
    after.renew("k")
    await after.reach("k", 100)
    assert await after.whole(found) == found
    after.close()


async def test_a_log_that_does_not_come_is_not_waited_for_without_end(
    kept: Mirrors, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "SILENT_SECONDS", 0.05)
    found = kept.begin(tmp_path, heard((3, 10)))
    with pytest.raises(KeeperUnavailable, match="does not come"):
        await kept.whole(found)
    kept.renew("k")


async def test_what_is_too_old_goes(
    sent: Sent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Mirrors(sent, each=2**24, together=2**30, age=0.05)
    kept._expiry.cancel()
    monkeypatch.setattr(mirrors, "EXPIRY_SECONDS", 0.01)
    kept._expire()
    kept.begin(tmp_path, HEARD)
    kept.on_records(piece(1, 0))
    await eventually(lambda: kept.on_bell("k", HEARD.bell).first != (1, 0))
    kept.close()
