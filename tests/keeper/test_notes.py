"""The keeper's notes, as the next keeper finds them."""

from __future__ import annotations

import logging
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.keeper.notes import FILE, GONE, LAUNCHING, SPARE_LINES, Note, Notes

NOTES: list[Note] = [("k", 42, "12345", "/kernel-k.log"), ("l", LAUNCHING, "", "/\u00e4")]


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def test_what_is_written_is_read(directory: int, tmp_path: Path) -> None:
    assert Notes(directory).read() == []
    Notes(directory).write(iter(NOTES))
    assert Notes(directory).read() == NOTES
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert stat.S_IMODE((tmp_path / "kept").stat().st_mode) == 0o600


def test_without_processes_there_is_no_file(directory: int, tmp_path: Path) -> None:
    notes = Notes(directory)
    notes.write(NOTES)
    for _ in range(2):
        notes.write([])
        assert not (tmp_path / "kept").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[1]", '[["k", "many", "", ""]]', '[["k", 1]]', "null", "[" * 100_000]
)
def test_what_cannot_be_read_is_told(
    directory: int, tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "kept").write_text(text)
    assert Notes(directory).read() == []
    (record,) = caplog.records
    assert "the keeper before this one" in record.message


def test_a_link_is_not_followed(directory: int, tmp_path: Path) -> None:
    (tmp_path / "other").write_text('[["k", 1, "", ""]]')
    (tmp_path / "kept").symlink_to(tmp_path / "other")
    assert Notes(directory).read() == []


def test_a_named_pipe_is_not_waited_for(directory: int, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / FILE)
    assert Notes(directory).read() == []
    both_ends = os.open(tmp_path / FILE, os.O_RDWR | os.O_NONBLOCK)
    assert Notes(directory).read() == []
    os.close(both_ends)
    Notes(directory).write(NOTES)
    assert Notes(directory).read() == NOTES


def test_a_failure_is_told_once_until_writing_works_again(
    directory: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    notes, obstacle = Notes(directory), tmp_path / "kept.new"
    notes.write(NOTES)
    for _ in range(2):
        obstacle.mkdir()
        notes.write(NOTES[:1])
        notes.write(NOTES[:1])
        assert notes.read() == NOTES  # as they were
        obstacle.rmdir()
        notes.write(NOTES)
    assert [record.levelno for record in caplog.records] == [logging.ERROR] * 2


def note(kernel: str, pid: int = 1) -> Note:
    return (kernel, pid, f"boot/{pid}", f"/output/{kernel}")


def lines(directory: Path) -> int:
    return len((directory / FILE).read_bytes().splitlines())


def test_the_last_note_of_a_kernel_counts(directory: int, tmp_path: Path) -> None:
    notes = Notes(directory)
    assert notes.read() == []
    assert not notes.add(note("a")), "there is no file of this keeper's yet"
    notes.write([note("a")])
    for each in (note("b", LAUNCHING), note("c"), note("b", 7), note("a", GONE)):
        assert notes.add(each)
    assert Notes(directory).read() == [note("c"), note("b", 7)]
    assert lines(tmp_path) == 5


def test_the_file_is_written_anew_when_it_has_many_lines(directory: int, tmp_path: Path) -> None:
    notes = Notes(directory)
    notes.write([note("a")])
    count = 0
    while notes.add(note("a", count)):
        count += 1
    assert count == SPARE_LINES + 1
    notes.write([note("a", 5)])
    assert lines(tmp_path) == 1
    assert notes.add(note("b"))
    assert Notes(directory).read() == [note("a", 5), note("b")]


def test_without_room_for_a_whole_line_the_file_is_written_anew(
    directory: int, tmp_path: Path
) -> None:
    notes = Notes(directory)
    notes.write([note("a")])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, ((tmp_path / FILE).stat().st_size + 5, hard))
    try:
        assert not notes.add(note("b"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not notes.add(note("c")), "it would go on where the line was cut"
    assert Notes(directory).read() == [note("a")]
    notes.write([note("a"), note("b")])
    assert notes.add(note("c"))
    assert Notes(directory).read() == [note("a"), note("b"), note("c")]


def test_no_note_leaves_no_file(directory: int, tmp_path: Path) -> None:
    notes = Notes(directory)
    notes.write([note("a")])
    notes.write([])
    assert not (tmp_path / FILE).exists()
    assert not notes.add(note("a"))


def test_a_note_that_is_cut_short_costs_no_other(directory: int, tmp_path: Path) -> None:
    notes = Notes(directory)
    notes.write([note("a"), note("b")])
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'["c", 1, "bo')
    assert Notes(directory).read() == [note("a"), note("b")]


def test_a_file_that_is_gone_is_written_anew(directory: int, tmp_path: Path) -> None:
    notes = Notes(directory)
    notes.write([note("a")])
    (tmp_path / FILE).unlink()
    assert not notes.add(note("b"))
    notes.write([note("a"), note("b")])
    assert Notes(directory).read() == [note("a"), note("b")]
