"""Few files are open for many logs."""

from __future__ import annotations

import errno
import gc
import os
import weakref
from pathlib import Path
from typing import Any

import pytest

from app.keeper.open_files import OpenFiles


class Reader:
    """Has one file open, or none."""

    def __init__(self, files: OpenFiles, path: Path) -> None:
        self._files = files
        self._path = path
        self.descriptor = -1

    def open(self) -> None:
        self.descriptor = self._files.open(self, self._path, os.O_RDONLY)

    def close_file(self) -> None:
        os.close(self.descriptor)
        self.descriptor = -1
        self._files.closed(self)


def are_open(readers: list[Reader]) -> list[bool]:
    return [reader.descriptor != -1 for reader in readers]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file"
    path.write_bytes(b"")
    return path


def test_the_file_that_is_open_for_longest_makes_room(path: Path) -> None:
    files = OpenFiles(2)
    readers = [Reader(files, path) for _ in range(3)]
    for reader in readers:
        reader.open()
    assert are_open(readers) == [False, True, True]
    readers[1].close_file()
    readers[0].open()
    assert are_open(readers) == [True, False, True]
    for reader in readers:
        if reader.descriptor != -1:
            reader.close_file()


def test_without_descriptors_others_give_up_theirs(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = OpenFiles(100)
    readers = [Reader(files, path) for _ in range(5)]
    for reader in readers[:4]:
        reader.open()
    really = os.open

    def none_is_left(path: Any, flags: int) -> int:
        if all(are_open(readers[:4])):
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return really(path, flags)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", none_is_left)
        readers[4].open()
    assert are_open(readers) == [False, False, True, True, True]
    for reader in readers[2:]:
        reader.close_file()


def test_no_reader_is_kept_in_memory(path: Path) -> None:
    files = OpenFiles(1)
    reader = Reader(files, path)
    reader.open()
    os.close(reader.descriptor)
    gone = weakref.ref(reader)
    del reader
    gc.collect()
    assert gone() is None
    another = Reader(files, path)
    another.open()  # in place of one that is gone
    another.close_file()


def test_a_named_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    files = OpenFiles(1)
    holder = Reader(files, tmp_path / "pipe")
    with pytest.raises(OSError, match=os.strerror(errno.ENXIO)):
        files.open(holder, tmp_path / "pipe", os.O_WRONLY)


def test_what_cannot_be_opened_takes_no_place(tmp_path: Path) -> None:
    files = OpenFiles(1)
    with pytest.raises(FileNotFoundError):
        Reader(files, tmp_path / "missing").open()
