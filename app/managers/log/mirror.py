"""A mirror: this server's copy of the log of a kernel whose keeper is on another host.

A mirror is a log like any other, with the same numbers, and this server is its only writer. It
writes pieces of the keeper's records, as they come over the link.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from ...keeper.log import LogRoom, LogWriter
from ...protocol import records
from ...protocol.records import DamagedLog

__all__ = ["MirrorWriter"]

MAX_NUMBER: Final = 2**48
"""The largest number of a message that is believed; no log comes near."""

MAX_RECORD: Final = 2**31
"""The largest size of a record, in bytes, that is believed of a keeper; no record has more."""

KEPT_RECORD: Final = 2**26
"""A record of so many bytes is kept whatever the bound of the log is."""


class MirrorWriter(LogWriter):
    """The writer of one mirror. The arguments are those of `LogWriter`."""

    def __init__(self, directory: Path, kernel_id: str, room: LogRoom, epoch: str) -> None:
        super().__init__(directory, kernel_id, room, epoch)
        self._rest = bytearray()  # the begin of a record whose end is still to come
        self._wanted = 0  # how many bytes that record has, if that much of it is there
        self._left_out = 0  # bytes still to come of a record that is left out

    def feed(self, data: memoryview, *, anew: bool) -> None:
        """Append the records that end in this piece; an incomplete one waits for the next piece.

        A record that is larger than the log may be becomes a gap, and is not held in memory.
        ``anew``: the piece begins with a record. Raises `DamagedLog` for what no keeper writes.
        """
        # The keeper has dropped the file that it was sending, or this server has asked anew: the
        # rest of an incomplete record does not follow. The next record's number shows the gap.
        if anew:
            self._rest, self._wanted, self._left_out = bytearray(), 0, 0
        if self._left_out:
            passed = min(self._left_out, len(data))
            self._left_out -= passed
            data = data[passed:]
        if self._rest:
            self._rest += data
            # A record is parsed only when it is whole: a large one comes in many pieces.
            if len(self._rest) < self._wanted:
                return
            data, self._rest = memoryview(self._rest), bytearray()
        try:
            self._append_all(data)
        finally:
            # Before the caller tells of the new end, and gives credit for further pieces. Records
            # in front of damage are in the log, too: the next link goes on behind them.
            self.flush()

    def _append_all(self, data: bytes | memoryview) -> None:
        at = self._wanted = 0
        while (record := records.next_record(data, at, 0)) is not None:
            # A keeper on another host must not be able to harm this server: number, offset and size
            # of a record are checked against bounds before the record is written or waited for.
            self._check(record)
            end = at + record.whole
            if record.whole > max(self._room.each, KEPT_RECORD):
                size = record.offset + record.size - self._offset
                self.skip(record.number + 1 - self._number, size)
                self._left_out, at = max(0, end - len(data)), min(end, len(data))
                continue
            if end > len(data):
                self._wanted = record.whole
                break
            records.owner_of(record, bytes(data[at + records.FRAME_AT + record.size : end]))
            self._copy(record, bytes(data[at:end]))
            at = end
        self._rest += data[at:]

    def expire(self, before: float) -> None:
        """As `LogWriter.expire`. An empty file stays: the next server sees how far the log went."""
        # The keeper's log may be gone by then, with the host. Without this file the next server
        # would begin with number 1, and give numbers a second time.
        had = bool(self._segments)
        super().expire(before)
        if had and not self._segments and not self._closed:
            with contextlib.suppress(OSError):
                self.prepare()

    def _check(self, record: records.Record) -> None:
        number, offset = self._number, self._offset
        if not number <= record.number < MAX_NUMBER:
            raise DamagedLog(f"number {record.number} comes where {number} is due")
        if record.offset < offset or (record.number == number and record.offset != offset):
            raise DamagedLog(f"number {number} is at offset {record.offset}, not at {offset}")
        if record.whole > MAX_RECORD:
            raise DamagedLog(f"number {number} has {record.whole} bytes")

    def _copy(self, record: records.Record, whole: bytes) -> None:
        """Append a record with its own number; what is missing before it is a gap."""
        if record.number > self._number:
            self.skip(record.number - self._number, record.offset - self._offset)
        self._put([whole], record.whole, record.size)
