"""Large frames: what is read of them, what is mapped, and what a file may do meanwhile."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.keeper.log import SEGMENT_BYTES
from app.managers.log.entries import Entry, Gap, Position
from app.managers.log.large_frames import Large
from app.managers.log.message_log import Reader
from app.protocol import v1
from app.protocol.messages import Message
from tests.support.logs import KERNEL, WrittenLog
from tests.support.processes import own_descriptors

LARGE = SEGMENT_BYTES + 1000
BETWEEN = 2**20
"""Read by itself, but in a file with others."""


@pytest.fixture
def log(tmp_path: Path) -> WrittenLog:
    return WrittenLog(2**26, tmp_path / KERNEL)


def said(msg_type: str, size: int, channel: str = "iopub", metadata: bytes = b"{}") -> Message:
    header = b'{"msg_id":"m","msg_type":"%s","session":"k"}' % msg_type.encode()
    content = b'{"text":"%s"}' % (b"0123456789" * (size // 10))
    parts = [header, b'{"msg_id":"p"}', metadata, content, b"a buffer"]
    return Message(channel, v1.encode(channel, parts)[0])


def taken(log: WrittenLog, large: Large = Large.MAPPED) -> tuple[Gap | None, list[Entry]]:
    reader = Reader(log.log, "s", Position(1, 0))
    reader.large = large
    gap, entries = reader.take()
    while reader.behind:
        more = reader.take()
        assert more.gap is None
        entries += more.entries
    return gap, entries


def whole(entry: Entry) -> bytes:
    return b"".join((entry.message.frame, *entry.message.rest))


def pieces(entries: Sequence[Entry]) -> list[int]:
    return [len(entry.message.rest) for entry in entries]


@pytest.mark.parametrize("msg_type", ["stream", "display_data", "update_display_data"])
def test_large_output_is_mapped_behind_its_headers(log: WrittenLog, msg_type: str) -> None:
    messages = [said(msg_type, 10), said(msg_type, LARGE), said(msg_type, 20)]
    for message in messages:
        log.append(message)

    gap, entries = taken(log)

    assert gap is None
    assert pieces(entries) == [0, 1, 0]
    assert [whole(entry) for entry in entries] == [message.frame for message in messages]
    assert [entry.size for entry in entries] == [len(message.frame) for message in messages]
    large = entries[1].message
    assert (large.msg_type, large.parent.msg_id, large.seq) == (msg_type, "p", 2)
    assert bytes(large.part(2)) == b"{}"


@pytest.mark.parametrize(
    "message",
    [
        said("stream", BETWEEN),
        said("error", LARGE),
        said("status", LARGE),
        said("comm_msg", LARGE),
        said("execute_reply", LARGE, "shell"),
        said("stream", LARGE, metadata=b'{"x":"%s"}' % bytes(2**16)),
        Message("iopub", b"\xff" * LARGE),
        Message("iopub", bytes(LARGE)),
    ],
    ids=["smaller", "error", "status", "comm", "reply", "metadata", "no table", "zeros"],
)
def test_everything_else_comes_whole(log: WrittenLog, message: Message) -> None:
    log.append(message)
    gap, (entry,) = taken(log)
    assert (gap, entry.message.rest, entry.message.frame) == (None, (), message.frame)


def test_only_who_asks_gets_it_mapped(log: WrittenLog) -> None:
    log.append(said("stream", LARGE))
    _, (entry,) = taken(log, Large.WHOLE)
    assert entry.message.rest == ()
    # What is concluded from the message takes its headers alone.
    log.log.show(Position(1, 0))
    found = log.log.next_unseen(10, 2**20)
    assert isinstance(found, list)
    assert len(found[0].message.frame) < LARGE < found[0].size
    assert found[0].message.rest == ()


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, "") for number in (errno.ENODEV, errno.EMFILE, errno.ENOMEM)),
        ValueError("mmap length is greater than file size"),
    ],
)
def test_where_nothing_can_be_mapped_it_is_read(
    log: WrittenLog, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    message = said("stream", LARGE)
    log.append(message)

    def refuse(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(mmap, "mmap", refuse)
    gap, (entry,) = taken(log)
    assert (gap, entry.message.rest, entry.message.frame) == (None, (), message.frame)


def test_a_file_that_is_cut_short_is_a_gap(log: WrittenLog) -> None:
    log.append(said("stream", 10))
    place = log.append(said("stream", LARGE))
    end = log.append(said("stream", 10))
    os.truncate(log.files()[1], LARGE // 2)

    reader = Reader(log.log, "s", place)
    reader.large = Large.MAPPED

    assert reader.take().gap == Gap(1, end.offset - place.offset)
    assert [entry.seq for entry in reader.take().entries] == [3]


def test_all_clients_have_one_mapping(log: WrittenLog) -> None:
    log.append(said("stream", LARGE))
    (_, first), before = taken(log), own_descriptors()
    more = [taken(log)[1] for _ in range(10)]
    assert own_descriptors() == before
    assert {whole(entries[0]) for entries in more} == {whole(first[0])}
    # And another one when the numbers are those of another log.
    log.log.begin_at("another epoch", log._bell())
    _, (anew,) = taken(log)
    assert own_descriptors() > before
    assert whole(anew) == whole(first[0])


def test_what_is_mapped_outlives_its_file(log: WrittenLog) -> None:
    message = said("stream", LARGE)
    log.append(message)
    descriptors = own_descriptors()
    _, (entry,) = taken(log)
    log.writer.remove()
    log.log.let_go()

    assert whole(entry) == message.frame
    del entry
    assert own_descriptors() < descriptors
