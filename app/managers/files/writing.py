"""Writes files so that readers see the whole old content or the whole new. All functions block."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Final

__all__ = [
    "copy_file",
    "create_new",
    "finish",
    "making",
    "may_write",
    "open_new",
    "partial_beside",
    "replacing",
]

PARTIAL: Final = ".~kernelkeep-"
"""The beginning of the names of unfinished files: it hides them. They go if the writing fails."""

COPIED_TOGETHER: Final = 2**20  # bytes


@contextmanager
def replacing(
    target: Path, guard: AbstractContextManager[None] | None = None
) -> Iterator[BinaryIO]:
    """A new file to write to, which replaces ``target`` at the end, with its mode and owner.

    ``guard`` is held during the replacement. If the block, the guard or the file system raises,
    ``target`` is as it was. Raises `OSError`.
    """
    partial = partial_beside(target)
    file = open_new(partial)
    try:
        with file:
            yield file
            # Before the rename: if the machine fails between the two, the old file is there, whole.
            finish(file, target)
        with guard or nullcontext():
            os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_beside(target: Path) -> Path:
    """A path for an unfinished file, beside ``target``: a rename must not cross file systems."""
    return target.with_name(f"{PARTIAL}{secrets.token_hex(8)}")


def open_new(path: Path) -> BinaryIO:
    """Open a new file to write to. Raises `FileExistsError`, for a symbolic link, too."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def finish(file: BinaryIO, target: Path) -> None:
    """Sync an unfinished file, and give it the mode and owner of the file that it will replace.

    Raises `PermissionError` if that file may not be written, and other kinds of `OSError`.
    """
    file.flush()
    # Another process may replace the target between this look and the rename. The new file then has
    # the mode of the file before that one, as if this write had come first.
    try:
        before = target.stat()
    except FileNotFoundError:
        pass
    else:
        # A rename needs rights to the directory only, and none to the file that it replaces.
        if not may_write(target):
            raise PermissionError(13, "Permission denied")
        if os.geteuid() == 0:
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
        os.fchmod(file.fileno(), before.st_mode & 0o7777)
    os.fsync(file.fileno())


def may_write(path: Path) -> bool:
    """Whether this thread may write a file, by the rights that it has now."""
    # Without `effective_ids` the system would check the rights of the user who started the process.
    return os.access(path, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


@contextmanager
def making(path: Path) -> Iterator[BinaryIO]:
    """A new file to write to, which is removed if the block or the file system raises.

    Raises `FileExistsError` and other kinds of `OSError`.
    """
    file = open_new(path)
    try:
        # Closed within the `try`: on a full disk the close fails, as it writes buffered bytes.
        with file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def create_new(path: Path, data: bytes) -> None:
    """Make a file with this content. Raises what `making` does."""
    with making(path) as file:
        file.write(data)


def copy_file(source: BinaryIO, destination: BinaryIO) -> None:
    """Copy the rest of one file, from its present position on, to another."""
    while data := source.read(COPIED_TOGETHER):
        destination.write(data)
