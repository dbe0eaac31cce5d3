"""Many logs have few open files, and lose nothing by it."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.keeper.log import FIRST_BYTES, LogRoom, LogWriter, Position
from app.keeper.log_room import NO_SHARE, share_from
from app.keeper.open_files import OpenFiles

LOGS = 5


@pytest.fixture
def room() -> LogRoom:
    room = LogRoom(2**24, 2**30, 3600.0)
    room.files = OpenFiles(2)
    return room


@pytest.fixture
def logs(room: LogRoom, tmp_path: Path) -> Iterator[list[LogWriter]]:
    made = [LogWriter(tmp_path / str(each), str(each), room) for each in range(LOGS)]
    for log in made:
        log.prepare()
    yield made
    for log in made:
        log.close()


def open_files(directory: Path) -> int:
    """How many files below a directory this process has open."""
    found = 0
    for descriptor in map(int, os.listdir("/dev/fd")):
        try:
            status = os.fstat(descriptor)
        except OSError:
            continue
        for path in directory.glob("*/*.log"):
            found += os.path.samestat(status, path.stat())
    return found


def frames(log: LogWriter) -> list[bytes]:
    return [bytes(frame) for _, _, frame in log.newest()]


def test_each_log_has_all_of_its_messages_although_few_files_are_open(
    logs: list[LogWriter], tmp_path: Path
) -> None:
    assert open_files(tmp_path) == 2
    said: list[list[bytes]] = [[] for _ in logs]
    for turn in range(4):
        for number, log in enumerate(logs):
            frame = b"%d of %d" % (turn, number)
            said[number].append(frame)
            log.append(frame, "iopub")
        for log in logs:  # all are written at the end of a turn
            log.flush()
        assert open_files(tmp_path) == 2
    assert [frames(log) for log in logs] == said
    assert [log.lost_messages for log in logs] == [0] * LOGS


def test_a_log_grows_into_further_files_while_others_take_its_place(
    logs: list[LogWriter], tmp_path: Path
) -> None:
    frame = b"x" * 20_000
    for _ in range(40):
        for log in logs[:3]:
            log.append(frame, "iopub")
            log.flush()
    assert open_files(tmp_path) == 2
    for log in logs[:3]:
        assert log.next.cursor == 41
        assert log.lost_messages == 0
        kept = sorted(log.directory.glob("*.log"))
        assert len(kept) > 2
        # The files that are full have given back what they do not use.
        assert sum(file.stat().st_size for file in kept[:-1]) < 41 * (len(frame) + 100)


def test_a_log_whose_file_was_closed_goes_on_with_the_next_keeper(
    logs: list[LogWriter], room: LogRoom
) -> None:
    logs[0].append(b"before", "iopub")
    logs[0].flush()
    logs[0].close_file()
    logs[0].close()
    again = LogWriter(logs[0].directory, "0", room)
    again.resume()
    again.close_file()
    again.append(b"after", "iopub")
    again.flush()
    assert frames(again) == [b"before", b"after"]
    assert again.end == Position(3, 11)
    again.close()


def test_without_descriptors_other_logs_close_theirs(
    logs: list[LogWriter], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really, refused = os.open, 0

    def none_is_left(path: Any, flags: int, *more: Any, **named: Any) -> int:
        nonlocal refused
        if flags & os.O_WRONLY and open_files(tmp_path) >= 2:
            refused += 1
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return really(path, flags, *more, **named)

    def write(log: LogWriter) -> None:
        log.append(b"said", "iopub")
        log.flush()

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", none_is_left)
        for log in logs:
            write(log)
    assert refused >= 3
    assert [frames(log) for log in logs] == [[b"said"]] * LOGS


def test_a_file_that_is_gone_when_it_is_needed_costs_what_was_to_be_written_there(
    logs: list[LogWriter], caplog: pytest.LogCaptureFixture
) -> None:
    log = logs[0]
    log.close_file()
    for file in log.directory.glob("*.log"):
        file.unlink()
    for frame in (b"lost", b"kept"):
        log.append(frame, "iopub")
        log.flush()
    assert log.lost_messages == 1
    assert frames(log) == [b"kept"]
    assert "its log cannot be written" in caplog.text


def _fill(log: LogWriter, size: int) -> None:
    for _ in range(size // 10_000):
        log.append(b"x" * 10_000, "iopub")
        log.flush()


def test_logs_that_share_a_bound_have_no_more_together_and_others_lose_nothing(
    room: LogRoom, logs: list[LogWriter]
) -> None:
    size = 40 * FIRST_BYTES
    for log in logs[:3]:
        room.share(log, "anna", size)
    room.share(logs[3], "ben", size)
    for log in logs[:3]:
        _fill(log, size)
    _fill(logs[3], size // 2)
    newest = 3 * size // 12  # a file of each, which cannot be dropped while it is written to
    assert sum(log.bytes for log in logs[:3]) <= size + newest
    assert min(log.bytes for log in logs[:3]) > 0
    assert logs[3].first.cursor == 1  # ben's log has lost nothing by anna's
    # The last that is said of the size counts, and one that leaves takes its bytes with it.
    room.share(logs[0], "anna", size // 2)
    assert sum(log.bytes for log in logs[:3]) <= size // 2 + newest
    before = logs[1].bytes
    room.share(logs[0], *NO_SHARE)
    _fill(logs[0], size)
    assert logs[0].bytes > size // 2
    assert logs[1].bytes == before
    for log in logs[1:3]:
        log.close()
    assert room._shares.keys() == {"ben"}
    assert room.used == sum(log.bytes for log in (logs[0], *logs[3:]))


def test_one_log_s_share_bounds_its_files_too(room: LogRoom, logs: list[LogWriter]) -> None:
    share = 8 * FIRST_BYTES
    room.share(logs[0], "anna", share)
    assert (room.bound_of(logs[0]), room.part_of(logs[0])) == (share, share // 4)
    assert room.bound_of(logs[1]) == room.each
    room.share(logs[1], "anna", share)
    assert (room.bound_of(logs[0]), room.part_of(logs[0])) == (share, share // 8)
    room.share(logs[0], "anna", 4 * room.each)
    assert room.bound_of(logs[0]) == room.each
    assert room.part_of(logs[0]) == room.each // 4


def test_a_bound_that_becomes_much_less_drops_as_many_files_as_that_takes(
    room: LogRoom, tmp_path: Path
) -> None:
    log = LogWriter(tmp_path / "k", "k", room)
    log.share("anna", 2**30)
    for _ in range(sys.getrecursionlimit()):
        log.append(b"x", "iopub")
        log.renew()  # each message has a file of its own
    log.share("anna", 2**14)
    assert room.used == log.bytes <= 2**14
    room.together = 2**12
    log.append(b"x", "iopub")
    log.flush()
    assert room.used == log.bytes <= 2**12
    log.close()


@pytest.mark.parametrize("share", [["", 1], ["a", 0], ["a", "1"], [1, 1], ["a", 1.5]])
def test_a_share_that_makes_no_sense_is_refused(share: list[Any]) -> None:
    with pytest.raises(ValueError, match="share"):
        share_from({"share": share})


def test_a_request_may_say_nothing_of_a_share() -> None:
    assert share_from({}) == share_from({"share": None}) == NO_SHARE
    assert share_from({"share": ["a", 5]}) == ("a", 5)
