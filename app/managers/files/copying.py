"""Copies files and directories. All functions block, and may raise `OSError`."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

from .bodies import open_file
from .errors import ContentsTooLarge, InvalidContents
from .tree import Place, Tree
from .writing import copy_file, making

__all__ = ["copy_directory", "copy_to"]

MAX_COPIED_BYTES: Final = 500 * 2**20
"""The largest directory that is copied; Jupyter servers have the same bound."""

MAX_COPIED_FILES: Final = 100_000
"""How many files and directories may be in it. Where each of two links in a directory leads to the
next one, and so on, a few dozen directories would become billions, of no bytes.
"""

MAX_DEPTH: Final = 64
"""How many directories, one in the other, may be in it."""


def copy_to(source: Place, target: Path) -> None:
    """Copy a file. Raises `FileExistsError` if there is a file of that name."""
    with open_file(source) as file, making(target) as copy:
        copy_file(file, copy)
        os.fchmod(copy.fileno(), os.fstat(file.fileno()).st_mode & 0o777)


def copy_directory(tree: Tree, source: Place, target: Path) -> None:
    """Copy the visible files of a directory. Of a symbolic link its target is copied.

    Raises `ContentsTooLarge` or `InvalidContents`, and `FileExistsError` if ``target`` is there. If
    it raises anything, there is no copy.
    """
    _measure(tree, source, _Room(source.path))
    target.mkdir()
    try:
        _copy_into(target, tree, source, target, _Room(source.path))
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


class _Room:
    """The bytes and files that the copy of one directory may still have; ``path`` is its name."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._bytes = self._files = 0

    def take(self, size: int = 0, *, depth: int = 0) -> None:
        """Take the room of a file of so many bytes, or of a directory in so many others.

        Raises `ContentsTooLarge` or `InvalidContents`.
        """
        self._bytes += size
        self._files += 1
        if depth > MAX_DEPTH:  # a link may lead to a directory above it
            raise InvalidContents(f"{self._path} is nested too deeply")
        if self._bytes > MAX_COPIED_BYTES:
            raise ContentsTooLarge(f"{self._path} has more than {MAX_COPIED_BYTES} bytes")
        if self._files > MAX_COPIED_FILES:
            raise ContentsTooLarge(
                f"{self._path} has more than {MAX_COPIED_FILES:,} files and directories"
            )


def _measure(tree: Tree, place: Place, room: _Room, depth: int = 1) -> None:
    """Take the room of everything in a directory before the copy begins: none is begun in vain."""
    for child in tree.children(place):
        if child.target.is_dir():
            room.take(depth=depth)
            _measure(tree, child, room, depth + 1)
        else:
            room.take(child.target.stat().st_size)


def _copy_into(
    to: Path, tree: Tree, source: Place, copy: Path, room: _Room, depth: int = 1
) -> None:
    """Copy what is in a directory into the directory ``to``, which is ``copy`` or below it."""
    # There may be more by now than was measured: all of it takes its room once more, of a new
    # `_Room`.
    for child in tree.children(source):
        # A link to a directory above the copy would have the copy copied into itself, without end.
        # A link into the copy led nowhere when this began, and could double the copy's files.
        if copy.is_relative_to(child.target) or child.target.is_relative_to(copy):
            continue
        target = to / child.name
        if child.target.is_dir():
            room.take(depth=depth)
            target.mkdir()
            _copy_into(target, tree, child, copy, room, depth + 1)
        else:
            room.take(child.target.stat().st_size)
            copy_to(child, target)
