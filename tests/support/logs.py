"""Logs of kernels for tests, in directories that go with them."""

from __future__ import annotations

import weakref
from pathlib import Path
from tempfile import TemporaryDirectory

from app.keeper.log import LogRoom, LogWriter
from app.managers.log.entries import Batch, Entry, Position
from app.managers.log.message_log import MessageLog, Reader
from app.protocol.link import Bell
from app.protocol.messages import Message
from app.protocol.records import PUBLISHED, TRANSIENT

__all__ = ["KERNEL", "WrittenLog", "drained", "message", "new_writer"]

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


def message(frame: int | bytes, channel: str = "iopub") -> Message:
    """A message with this frame, or with one of so many bytes."""
    return Message(channel, bytes(frame))


class WrittenLog:
    """A log and its writer. What is appended is on disk, and readers know of it."""

    def __init__(
        self,
        max_bytes: int = 2**20,
        directory: Path | None = None,
        room: LogRoom | None = None,
        *,
        resumed: bool = False,
    ) -> None:
        self.writer = new_writer(max_bytes, directory, room)
        if resumed:
            self.writer.resume()
        self.log = MessageLog(self.writer.directory, KERNEL)
        self.log.begin_at(self.writer.epoch, self._bell())
        self.tell()

    def _bell(self) -> Bell:
        writer = self.writer
        writer.flush()
        return Bell(1, writer.first, writer.end, writer.tip, 0)

    def tell(self) -> None:
        """Have the log know how far its writer is, and readers see all of that."""
        self.log.advance(self._bell())
        self.log.show(Position(*self.writer.end))

    def append(
        self,
        message: Message,
        owner: str | None = None,
        *,
        transient: bool = False,
        published: bool = False,
    ) -> Position:
        """Write a message; returns its place."""
        flags = TRANSIENT * transient | PUBLISHED * published
        place = Position(*self.writer.append(message.frame, message.channel, owner, flags))
        self.tell()
        return place

    def skip(self, messages: int, size: int = 0) -> None:
        """Leave numbers out, which stand for so many bytes."""
        self.writer.skip(messages, size)
        self.tell()

    def remove(self) -> None:
        """Remove the files, as of a kernel that is gone."""
        self.log.hold()
        self.writer.remove()

    def fill(self, *frames: int | bytes, owner: str | None = None) -> list[int]:
        """Write messages with these frames, or frames of so many bytes; returns their numbers."""
        return [self.append(message(frame), owner).cursor for frame in frames]

    def files(self) -> list[Path]:
        """The segments, from the oldest on."""
        return sorted(self.writer.directory.glob("*.log"))


def drained(reader: Reader, max_messages: int = 64, max_bytes: int = 2**20) -> Batch:
    """All that there is for a reader; the gaps summed up in one."""
    gap, entries = None, list[Entry]()
    while reader.behind:
        found, taken = reader.take(max_messages, max_bytes)
        if found is not None:
            gap = found if gap is None else type(found)(*map(sum, zip(gap, found, strict=True)))
        entries += taken
    return Batch(gap, entries)
