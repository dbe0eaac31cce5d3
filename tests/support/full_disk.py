"""A file on a disk that is full."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import BinaryIO, cast

from app.managers.files.writing import open_new

__all__ = ["open_on_full_disk"]


class _OnFullDisk(io.FileIO):
    def write(self, data: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def open_on_full_disk(path: Path) -> BinaryIO:
    """As `open_new`, but of what is written nothing reaches the disk, at the close neither."""
    with open_new(path) as file:
        descriptor = os.dup(file.fileno())
    return cast(BinaryIO, io.BufferedWriter(_OnFullDisk(descriptor, "wb")))
