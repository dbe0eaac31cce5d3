"""What a keeper that was killed leaves for the next one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.keeper.notes import FILE, GONE, LAUNCHING, SPARE_LINES, Note, Notes


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


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


def test_the_notes_of_earlier_versions_are_read(directory: int, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text('[["a", 1, "boot/1", "/output/a"], ["b", 0, "", "/output/b"]]')
    assert Notes(directory).read() == [note("a"), ("b", 0, "", "/output/b")]


def test_a_file_that_is_gone_is_written_anew(directory: int, tmp_path: Path) -> None:
    notes = Notes(directory)
    notes.write([note("a")])
    (tmp_path / FILE).unlink()
    assert not notes.add(note("b"))
    notes.write([note("a"), note("b")])
    assert Notes(directory).read() == [note("a"), note("b")]
