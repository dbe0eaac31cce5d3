"""What a log has numbered, and how far its readers came, read again by another process."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.managers.entries import Gap, Position
from app.managers.journal import PLACES, SLOTS, Journal, UnusableJournal, key_of
from app.managers.log import MessageLog, Reader
from app.managers.recovery import align, in_order
from app.protocol.compose import make_message
from app.protocol.messages import Message


def message(text: str = "x") -> Message:
    return make_message("iopub", "stream", {"name": "stdout", "text": text}, session="kernel")


def journal_of(path: Path, log: MessageLog) -> Journal:
    log.journal = Journal.create(path, log.epoch, "ours", b"i" * 16)
    return log.journal


def test_every_number_is_known_to_the_next_process(tmp_path: Path) -> None:
    path, log = tmp_path / "k.journal", MessageLog(2**20)
    journal = journal_of(path, log)
    said, reply = message(), message("reply")
    log.append(said, kept=True)
    log.append(reply, "somebody")
    log.append(message("idle"), transient=True)
    log.note()
    again = Journal.open(path)  # while the first is mapped, as after kill -9
    first, second, third = again.read()
    assert again.head == (log.epoch, "ours", b"i" * 16)
    assert (first.seq, first.offset, first.size) == (1, 0, len(said.frame))
    assert first.key == key_of(said)
    assert first.message is None
    assert second.message is not None
    assert (second.message.frame, second.owner) == (reply.frame, "somebody")
    assert (third.seq, third.offset) == (3, len(said.frame) + len(reply.frame))
    assert third.transient
    journal.close()


def test_numbers_that_nobody_knows_are_not_given_again(tmp_path: Path) -> None:
    """Two processes end one after the other, the second before it has noted anything."""
    path, log = tmp_path / "k.journal", MessageLog(2**20)
    journal = journal_of(path, log)
    log.append(message())
    second = Journal.open(path)
    (first,) = second.read()
    second.note_hole(first.seq + 1, Position(first.seq + 65, 1000))
    noted = Journal.open(path).read()
    assert [entry.seq for entry in noted] == list(range(1, 66))
    assert (noted[-1].offset, noted[-1].size, noted[-1].message) == (1000, 0, None)
    journal.close()
    second.close()


def test_it_goes_round_and_keeps_the_newest(tmp_path: Path) -> None:
    path, log = tmp_path / "k.journal", MessageLog(2**16)
    journal_of(path, log)
    large = message("y" * 2**17)
    for count in range(SLOTS + 100):
        log.append(large if count % 6000 == 0 else message(), kept=count % 6000 != 0)
    log.append(message("z" * 2**19))  # more than it takes of one
    noted = Journal.open(path).read()
    assert [entry.seq for entry in noted] == list(range(102, SLOTS + 102))
    whole = [entry for entry in noted if entry.message is not None]
    assert [entry.seq % 6000 for entry in whole] == [1] * len(whole)
    assert 2 <= len(whole) <= 7  # as many as there is room for
    assert (noted[-1].key, noted[-1].message) == (b"", None)


def test_sessions_are_found_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "k.journal"
    journal = Journal.create(path, "epoch", "ours", b"")
    for count in range(PLACES + 1):
        journal.put_place(f"session {count}", Position(count, 10 * count))
    journal.put_place("session 2", Position(7, 70))
    again = Journal.open(path)
    assert again.place_of("session 0", 60) is None  # it made room
    assert again.place_of("session 1", 60) == Position(1, 10)
    assert again.place_of("session 2", 60) == Position(7, 70)
    assert again.place_of("session 2", -1) is None
    again.put_place("one more", Position(1, 1))  # in place of the longest unchanged
    assert again.place_of("session 1", 60) is None


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * 2**22])
def test_what_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "k.journal"
    path.write_bytes(content)
    with pytest.raises(UnusableJournal):
        Journal.open(path)


def test_a_disk_that_has_no_room_is_noticed_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnusableJournal, match="cannot be made"):
        Journal.create(tmp_path / "missing" / "k.journal", "epoch", "ours", b"")


@pytest.mark.parametrize(
    ("numbered", "ring", "places", "new_from"),
    [
        ("", "abc", [], 0),
        ("abc", "abc", [0, 1, 2], 3),
        ("abc", "xaybzc", [1, 3, 5], 6),  # what is between was not to be numbered
        ("abc", "bcd", [None, 0, 1], 2),  # the ring has lost the oldest
        ("abc", "cde", [None, None, 0], 1),
        ("abc", "def", [None] * 3, 0),  # and all of them
        ("aab", "aabb", [0, 1, 2], 3),  # a kernel that sent one message twice
        ("axb", "ab", [0, None, 1], 2),
    ],
)
def test_the_ring_tells_what_has_numbers_and_what_is_new(
    numbered: str, ring: str, places: list[int | None], new_from: int
) -> None:
    keys = [[letter.encode() for letter in letters] for letters in (numbered, ring)]
    assert align(*keys) == (places, new_from)


@pytest.mark.parametrize(
    ("said", "heard", "whole"),
    [
        ("", "", ""),
        ("abc", "", "abc"),
        ("", "bc", "bc"),
        ("abc", "bcd", "abcd"),  # as nearly always
        ("ab", "cd", "abcd"),
        ("bc", "abcd", "abcd"),  # a keeper that was started anew has begun after us
        ("ad", "bcd", "abcd"),  # and its socket was another for a while
        ("abcd", "bc", "abc"),  # the last is about to come
        ("abc", "RbScd", "aRbScd"),  # replies come as they come
        ("bc", "RabScd", "RabScd"),
    ],
)
def test_what_two_have_heard_is_told_once_and_in_order(said: str, heard: str, whole: str) -> None:
    made = {name: message(name) for name in "abcd"}
    made |= {name: make_message("shell", "execute_reply", {}, session="kernel") for name in "RS"}
    found = in_order([made[name] for name in said], [made[name] for name in heard])
    assert found == [made[name] for name in whole]


async def test_holes_are_told_as_gaps_and_nothing_else_is_missed() -> None:
    log = MessageLog(2**20)
    step = 1000
    log.begin_at("epoch", Position(5, 5 * step))
    for seq in (5, 6, 9):
        place = Position(seq, step * seq)
        log.put_back_hole(place)
        log.put_back(message(str(seq)), None, place, transient=False)
    log.put_back_hole(Position(12, 12 * step))
    log.append(message("new"))
    reader = Reader(log, "me", Position(1, 100))
    seen: list[int | Gap] = []
    while reader.behind:
        gap, entries = await reader.fetch()
        seen += [gap] if gap else []
        seen += [entry.seq for entry in entries]
    assert [item for item in seen if isinstance(item, int)] == [5, 6, 9, 12]
    assert [gap.messages for gap in seen if isinstance(gap, Gap)] == [4, 2, 2]
    assert log.place_after(7).cursor == 8
    log.shrink(0)
    assert log.gap_before(Position(7, 0)) == Gap(5, 12 * step)


def test_numbers_are_noted_before_their_messages_leave_memory(tmp_path: Path) -> None:
    path, log = tmp_path / "k.journal", MessageLog(2**16)
    journal_of(path, log)
    for _ in range(10):
        log.append(message("large" * 2**13), kept=True)
    log.append(message(), "somebody")
    assert [entry.seq for entry in Journal.open(path).read()] == list(range(1, 12))
