"""Writing files so that readers see the old content or the new. All of it blocks."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO, Final

__all__ = ["copy_file", "create_new", "finish", "open_new", "partial_beside", "replacing"]

PARTIAL: Final = ".~kernelkeep-"
"""How the names of unfinished files begin. They are hidden, and removed when writing fails."""

COPIED_TOGETHER: Final = 2**20  # bytes


@contextmanager
def replacing(
    target: Path, guard: AbstractContextManager[None] | None = None
) -> Iterator[BinaryIO]:
    """A file to write to that takes the place of ``target`` at the end, with its mode and owner.

    ``guard`` is held while it does so; what it raises leaves everything as it was. Raises
    `OSError`.
    """
    partial = partial_beside(target)
    file = open_new(partial)
    try:
        with file:
            yield file
            finish(file, target)
        with guard or nullcontext():
            os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def partial_beside(target: Path) -> Path:
    """A name for an unfinished file in the directory of ``target``, so that a rename is enough."""
    return target.with_name(f"{PARTIAL}{secrets.token_hex(8)}")


def open_new(path: Path) -> BinaryIO:
    """A new file to write to. Raises `FileExistsError`; a link is never followed."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o666), "wb")


def finish(file: BinaryIO, target: Path) -> None:
    """Have an unfinished file on the disk, and as accessible as the file that it replaces."""
    file.flush()
    try:
        before = target.stat()
    except FileNotFoundError:
        pass
    else:
        if not os.access(target, os.W_OK):
            raise PermissionError(13, "Permission denied")
        if os.geteuid() == 0:
            os.fchown(file.fileno(), before.st_uid, before.st_gid)
        os.fchmod(file.fileno(), before.st_mode & 0o7777)
    os.fsync(file.fileno())


def create_new(path: Path, data: bytes) -> None:
    """A new file with this content. Raises `FileExistsError` and other kinds of `OSError`."""
    with open_new(path) as file:
        file.write(data)


def copy_file(source: BinaryIO, destination: BinaryIO) -> None:
    """Copy what is in one file behind the place where it is read."""
    while data := source.read(COPIED_TOGETHER):
        destination.write(data)
