"""Logs of kernels for tests, in directories that go with them."""

from __future__ import annotations

import weakref
from pathlib import Path
from tempfile import TemporaryDirectory

from app.keeper.log import LogRoom, LogWriter
from app.managers.log import MessageLog

__all__ = ["new_log", "new_writer"]

KERNEL = "kernel"


def new_writer(
    max_bytes: int = 2**20, directory: Path | None = None, room: LogRoom | None = None
) -> LogWriter:
    """A writer of a log that has nothing yet; in a directory of its own unless one is given."""
    temporary = None
    if directory is None:
        temporary = TemporaryDirectory(prefix="kk-log-")
        directory = Path(temporary.name) / KERNEL
    writer = LogWriter(directory, KERNEL, room or LogRoom(max_bytes, 2**40, 3600.0))
    if temporary is not None:
        weakref.finalize(writer, temporary.cleanup)
    return writer


def new_log(
    max_bytes: int = 2**20, directory: Path | None = None, room: LogRoom | None = None
) -> MessageLog:
    """A log that has nothing yet."""
    return MessageLog(new_writer(max_bytes, directory, room))
