"""Copies files and directories. All functions block, and may raise `OSError`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
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


def copy_to(source: Place, target: Path) -> None:
    """Copy a file. Raises `FileExistsError` if there is a file of that name."""
    with open_file(source) as file, making(target) as copy:
        copy_file(file, copy)
        os.fchmod(copy.fileno(), os.fstat(file.fileno()).st_mode & 0o777)


def copy_directory(tree: Tree, source: Place, target: Path) -> None:
    """Copy the visible files of a directory. Of a symbolic link its target is copied."""
    # Files may grow while they are copied: the bound is one on what a client asks for, not on what
    # a kernel that writes at the same time makes of it.
    _check_size(tree, source)
    target.mkdir()
    try:
        for child in tree.children(source):
            to = target / child.name
            if not child.target.is_dir():
                copy_to(child, to)
            # A link may lead to a directory that the copy is being made in.
            elif not target.is_relative_to(child.target):
                copy_directory(tree, child, to)
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def _check_size(tree: Tree, source: Place) -> None:
    size = 0
    for count, more in enumerate(_sizes_below(tree, source), 1):
        size += more
        if size > MAX_COPIED_BYTES:
            raise ContentsTooLarge(f"{source.path} has more than {MAX_COPIED_BYTES} bytes")
        if count > MAX_COPIED_FILES:
            raise ContentsTooLarge(
                f"{source.path} has more than {MAX_COPIED_FILES:,} files and directories"
            )


def _sizes_below(tree: Tree, place: Place, depth: int = 0) -> Iterator[int]:
    """The bytes of each file, and 0 for each directory, in the order in which they are copied."""
    if depth > 64:  # a link may lead to a directory above it
        raise InvalidContents(f"{place.path} is nested too deeply")
    for child in tree.children(place):
        if child.target.is_dir():
            yield 0
            yield from _sizes_below(tree, child, depth + 1)
        else:
            yield child.target.stat().st_size
