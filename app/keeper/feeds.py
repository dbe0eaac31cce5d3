"""What the keeper sends of its logs to a server on another host: their records, as they stand.

That server cannot read the files. It keeps a copy of each log, a *mirror*, and says from which
number on it follows the log. The keeper sends pieces of the segment files from there on, without
looking at the records in them. Each kernel has a *credit* of bytes, which the server renews when it
has written what it got. The credits, the room in the socket, and turns between kernels bound what a
kernel that floods can delay others by.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Final

from ..protocol import records
from ..protocol.link import pack_records
from ..protocol.records import DamagedLog
from .log import LogWriter
from .log_files import Segment

__all__ = ["Feed", "Feeds"]

PIECE_BYTES: Final = 2**16
"""How many bytes of one kernel's log are sent before it is another kernel's turn."""

SCAN_BYTES: Final = 2**18


class Feed:
    """One log on its way to one server: how far it is sent, and its credit, in bytes."""

    def __init__(self, writer: LogWriter, after: int, credit: int) -> None:
        self.credit = credit
        self._writer = writer
        self._anew = True  # whether the next piece begins with a record, wherever the last ended
        self._segment: Segment | None = None
        self._position = records.HEAD_BYTES
        writer.flush()
        # The last segment that begins at or before the number; the first of all if the log has
        # dropped that number already.
        for segment in writer.segments:
            if self._segment is None or segment.start.cursor <= after:
                self._segment = segment
        if self._segment is not None:
            self._position = _position_of(self._segment, after)

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes: the kernel is gone."""
        return self._writer.is_closed

    def take(self, most: int) -> tuple[bool, bytes]:
        """The next piece, of ``most`` bytes at the most; empty if there is none, or no credit.

        The first value tells whether the piece begins with a record. Messages that the log has
        dropped meanwhile are missing, which the server sees by the next record's number.
        """
        # The keeper alone drops and recycles files, and not while this runs. A file that changes
        # between two calls is seen by `_present`.
        most = min(most, self.credit)
        while most and (segment := self._present()) is not None:
            data = self._read(segment, most)
            if data:
                anew, self._anew = self._anew, False
                self.credit -= len(data)
                self._position += len(data)
                return anew, data
            if (behind := self._behind(segment)) is None:  # all that is written was sent
                break
            self._enter(behind)  # no record lies in two files
        return False, b""

    def _present(self) -> Segment | None:
        """The segment that is being sent; the next one if the log has dropped it meanwhile."""
        segments, before = self._writer.segments, self._segment
        if not segments or (before is not None and any(one is before for one in segments)):
            return before if segments else None
        # A file that had no record yet may have been replaced by one that begins there, too.
        least = 0 if before is None else before.start.cursor
        for segment in segments:
            if segment.start.cursor >= least:
                self._enter(segment, anew=True)
                return segment
        return None

    def _behind(self, segment: Segment) -> Segment | None:
        """The segment that follows one; None for the newest, which may still grow."""
        found = False
        for one in self._writer.segments:
            if found:
                return one
            found = one is segment
        return None

    def _enter(self, segment: Segment, *, anew: bool = False) -> None:
        self._segment, self._position = segment, records.HEAD_BYTES
        self._anew |= anew

    def _read(self, segment: Segment, most: int) -> bytes:
        """Bytes of a segment's records; empty behind the last one that is written."""
        # Up to what `flush` has written: behind that a failed write may have left half a record.
        size = min(most, segment.bytes - self._position)
        if size <= 0:
            return b""
        # Opened for each piece: feeds of thousands of kernels would take as many descriptors.
        data = b""
        try:
            descriptor = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                data = os.pread(descriptor, size, self._position)
            finally:
                os.close(descriptor)
        except OSError:
            pass
        if not data:  # somebody has removed the file, or cut it short: its messages are lost
            self._position, self._anew = segment.bytes, True
            self._writer.renew()
        return data


def _position_of(segment: Segment, number: int) -> int:
    """Where in its file the first record begins that has this number, or a higher one."""
    position = records.HEAD_BYTES
    try:
        with segment.path.open("rb") as file:
            data, data_at = b"", 0
            while position < segment.bytes:
                if not data_at <= position <= data_at + len(data) - records.FRAME_AT:
                    file.seek(position)
                    data, data_at = file.read(SCAN_BYTES), position
                record = records.next_record(data, position - data_at, 0)
                if record is None or record.number >= number:
                    break
                position += record.whole
    except (OSError, DamagedLog):  # the feed fails there in the same way, and goes on behind it
        pass
    return position


class Feeds:
    """All feeds to one server. ``send`` sends a frame, and ``has_room`` tells whether to go on."""

    def __init__(self, send: Callable[[bytes], None], has_room: Callable[[], bool]) -> None:
        self._send = send
        self._has_room = has_room
        self._feeds: dict[int, Feed] = {}
        self._turns: dict[int, None] = {}  # handles of kernels that may have something, in order

    def follow(self, handle: int, writer: LogWriter, after: int, credit: int) -> None:
        """Send a log from a number on."""
        for gone in [handle for handle, feed in self._feeds.items() if feed.is_over]:
            del self._feeds[gone]
        self._feeds[handle] = Feed(writer, after, credit)
        self.grown([handle])

    def grant(self, handle: int, size: int) -> None:
        """Raise a feed's credit: the server has written so many bytes."""
        feed = self._feeds.get(handle)
        if feed is not None:
            feed.credit += size
            self.grown([handle])

    def grown(self, handles: Iterable[int]) -> None:
        """Send what is new in logs that have grown, as far as the server follows them."""
        for handle in handles:
            if handle in self._feeds:
                self._turns.setdefault(handle)
        self.pump()

    def pump(self) -> None:
        """Send pieces in turn, while the socket has room."""
        # `send` may use up the room: the transport calls `pause_writing` within `write`. Nothing
        # else changes the turns meanwhile. `ServerLink.resume_writing` calls this again.
        turns = self._turns
        while turns and self._has_room():
            handle = next(iter(turns))
            del turns[handle]
            feed = self._feeds.get(handle)
            anew, data = feed.take(PIECE_BYTES) if feed is not None else (False, b"")
            if data:
                self._send(pack_records(handle, anew, data))
                turns[handle] = None  # behind all others; without data only `grown` puts it back
