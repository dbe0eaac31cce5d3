"""How far a log's readers came, read again by another process."""

from __future__ import annotations

from pathlib import Path

import pytest

from app.managers.log.entries import Position
from app.managers.log.journal import PLACES, Journal, UnusableJournal

EPOCH = "0123456789abcdef"


def test_sessions_are_found_where_they_were(tmp_path: Path) -> None:
    path = tmp_path / "k.journal"
    journal = Journal.create(path, "epoch")
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


def test_whether_the_process_was_about_to_be_replaced_is_known(tmp_path: Path) -> None:
    path = tmp_path / "k.journal"
    journal = Journal.create(path, "epoch")
    assert not journal.replaced
    journal.put_place("session", Position(7, 70))
    journal.replaced = True
    journal.close()
    again = Journal.open(path)
    assert (again.replaced, again.place_of("session", 60)) == (True, Position(7, 70))


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\0" * 2**22])
def test_what_is_no_journal_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "k.journal"
    path.write_bytes(content)
    with pytest.raises(UnusableJournal):
        Journal.open(path)


def test_a_disk_that_has_no_room_is_noticed_at_once(tmp_path: Path) -> None:
    with pytest.raises(UnusableJournal, match="cannot be made"):
        Journal.create(tmp_path / "missing" / "k.journal", "epoch")


def test_a_closed_journal_is_mapped_again_when_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "k.journal"
    journal = Journal.create(path, EPOCH)
    journal.close()
    journal.put_place("session", Position(7, 70))
    journal.close()
    journal.replaced = True
    journal.close()
    assert (journal.epoch, journal.replaced) == (EPOCH, True)
    journal.close()
    assert journal.place_of("session", 60) == Position(7, 70)
    journal.close()
    assert journal.furthest == Position(7, 70)
    assert Journal.open(path).place_of("session", 60) == Position(7, 70)


def test_a_journal_that_is_gone_is_told_of_once_and_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "k.journal"
    journal = Journal.create(path, EPOCH)
    journal.close()
    path.unlink()
    journal.put_place("session", Position(7, 70))
    journal.replaced = True
    assert journal.place_of("session", 60) is None
    assert not journal.replaced
    assert journal.furthest == Position(1, 0)
    assert len([line for line in caplog.messages if str(path) in line]) == 1
