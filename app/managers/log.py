"""The numbered, byte-bounded log of what one kernel said, and its readers.

Every message gets the next sequence number (from 1). The log keeps the newest messages up to a
number of bytes; what falls off the front is remembered by its count and size, so that a reader
whose cursor has fallen off can be told exactly how much is gone. There is no queue per client: a
slow reader falls behind its own cursor and costs nothing but the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final
from weakref import WeakSet

from app.keeper.log import LogWriter
from app.managers.entries import Batch, Entry, Gap, Position
from app.managers.errors import AfterBeyondEnd, StaleEpoch
from app.managers.segments import SegmentReader
from app.protocol.messages import Message
from app.protocol.records import PUBLISHED, TRANSIENT

__all__ = ["NOBODY", "Batch", "Entry", "Gap", "MessageLog", "Position", "Reader"]

logger = logging.getLogger(__name__)

NOBODY: Final = ""
"""The owner of what is kept in the log and shown to no session."""

LIVE_SECONDS: Final = 30.0
"""How long a reader may take for what it has got, and still count as one that reads."""

SHARED_BYTES: Final = 2**20
"""Up to this size what was read last is kept for readers that are level."""


class MessageLog:
    """The log of one kernel: its files' writer, and its readers.

    ``writer`` has numbered what is there already.
    """

    def __init__(self, writer: LogWriter) -> None:
        self._writer = writer
        writer.wanted_from = self._wanted_from
        self._files = SegmentReader(writer.directory, writer.kernel_id)
        self.closed = False
        self._waiting: set[asyncio.Future[None]] = set()
        self._readers: WeakSet[Reader] = WeakSet()
        self._flush_plan: asyncio.Handle | None = None
        # What was read last: readers that are level with each other read the same.
        self._last: tuple[int, list[Entry]] = (0, [])
        self._warned = False

    @property
    def epoch(self) -> str:
        """What tells the numbers of this log from those of another."""
        return self._writer.epoch

    @property
    def bytes(self) -> int:
        """What the log takes on disk."""
        return self._writer.bytes

    @property
    def start(self) -> Position:
        """The place of the oldest message that is kept; the end when there is none."""
        return self._writer.first

    @property
    def first_seq(self) -> int:
        """The oldest number kept; equal to `next_seq` when the log is empty."""
        return self.start.cursor

    @property
    def next_seq(self) -> int:
        """The number that the next message will get."""
        return self._writer.next.cursor

    @property
    def end(self) -> Position:
        """Where the next message will be."""
        return self._writer.next

    def append(
        self,
        message: Message,
        owner: str | None = None,
        *,
        transient: bool = False,
        published: bool = False,
    ) -> None:
        """Give ``message`` the next number, keep it, and wake the readers that wait.

        A ``transient`` message is not shown to readers that come later. ``published``: the kernel
        has sent it, on iopub.
        """
        flags = TRANSIENT * transient | PUBLISHED * published
        message.seq, message.offset = self._writer.append(
            message.frame, message.channel, owner, flags
        )
        if self._flush_plan is None:
            self._flush_plan = asyncio.get_running_loop().call_soon(self._flush)
        if self._waiting:
            self.wake()

    def _flush(self) -> None:
        self._flush_plan = None
        self.flush()

    def skip(self, messages: int) -> None:
        """So many numbers, or more, stand for what nobody knows."""
        self._writer.skip(messages)

    def read(self, place: Position, max_messages: int, max_bytes: int) -> Gap | list[Entry]:
        """Entries from ``place`` on, at most so many messages or (about) bytes; or what is lost.

        ``place`` must not be before `start`. Nothing is left when the list is empty.
        """
        self._writer.flush()
        cursor, entries = self._last
        if entries and cursor == place.cursor and len(entries) <= max_messages:
            return entries
        end = self._writer.end
        if place.cursor >= end.cursor:
            return []
        files = self._files
        files.newest = self._writer.tip.segment
        entries = files.read(place, end, max_messages, max_bytes)
        if files.trouble and not self._warned:
            logger.warning("a part of a kernel's log is lost: %s", files.trouble)
            self._warned = True
        if not entries:  # it is damaged, or was never written
            behind = files.behind_damage(place, self._writer.tip, end)
            return _gap(place, behind)
        first, last = entries[0], entries[-1]
        if first.seq > place.cursor:
            return _gap(place, Position(first.seq, first.offset))
        if last.offset - first.offset + len(last.message.frame) <= SHARED_BYTES:
            self._last = (place.cursor, entries)
        return entries

    def gap_before(self, place: Position) -> Gap | None:
        """What lies between a reader's place and the oldest message kept, if anything."""
        start = self.start
        if start.cursor <= place.cursor:
            return None
        self._files.forget_before(start.cursor)
        return _gap(place, start)

    def place_after(self, seq: int, epoch: str | None = None) -> Position:
        """The place after number ``seq`` (0: before the first), which need not be kept any more.

        Raises `StaleEpoch` when ``epoch`` is not this log's, and `AfterBeyondEnd` when no message
        has that number yet.
        """
        if epoch is not None and epoch != self.epoch:
            raise StaleEpoch("epoch: these numbers are not of this kernel's present log")
        if not 0 <= seq < self.next_seq:
            raise AfterBeyondEnd(f"after: the newest number is {self.next_seq - 1}")
        cursor, start = seq + 1, self.start
        if cursor >= self.next_seq:
            return self.end
        if cursor == 1:
            return Position(1, 0)
        if cursor > start.cursor:
            found = self.read(Position(cursor, start.offset), 1, 0)
            if isinstance(found, list) and found:
                return Position(cursor, found[0].offset)
        # How many bytes came before it is not known to the byte; the first read will tell.
        return Position(cursor, start.offset)

    def close(self) -> None:
        """Nothing more will come: let the readers end once they have read the rest."""
        self.closed = True
        self.wake()

    def prepare(self) -> None:
        """Take the room for the first messages. Raises `OSError` where it cannot be had."""
        self._writer.prepare()

    def resume(self) -> None:
        """Go on with the log of another process; begin with this. Raises `OSError`."""
        self._writer.resume()

    def flush(self) -> None:
        """Have on disk all that has a number."""
        self._writer.flush()

    def remove_files(self) -> None:
        """Remove what is on disk. Readers still get what is in the newest file."""
        self._writer.flush()
        self._files.newest = self._writer.tip.segment
        self._files.hold_newest()
        self._writer.remove()

    def _wanted_from(self) -> int | None:
        """The number that the last of the readers that read just now comes to; None for none."""
        live = (reader.position.cursor for reader in self._readers if reader.is_live)
        return min(live, default=None)

    def add_reader(self, reader: Reader) -> None:
        """Know who reads, for as long as it is there."""
        self._readers.add(reader)

    def wake(self) -> None:
        """Let every waiting reader look again."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(None)
        self._waiting.clear()

    async def wait(self) -> None:
        """Return at the next message, or at `wake`. Has no bound: a quiet kernel is no fault."""
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            self._waiting.discard(waiter)


def _gap(place: Position, behind: Position) -> Gap:
    """What lies between two places."""
    return Gap(behind.cursor - place.cursor, max(0, behind.offset - place.offset))


class Reader:
    """One client's cursor into a log, and its filter.

    It sees what is for every session and what is for its own, from ``start`` on (None: from now).
    """

    def __init__(self, log: MessageLog, session: str, start: Position | None = None) -> None:
        self.session = session
        self.replaced = False  # by a newer connection of the same session
        self._log = log
        self._confirmed: Callable[[Position], Position] | None = None
        self._cursor, self._offset = start or log.end
        self._live_from = log.next_seq
        self._moved = time.monotonic()
        log.add_reader(self)

    @property
    def position(self) -> Position:
        """Where it will read next; a later reader can start there."""
        return Position(self._cursor, self._offset)

    def confirm_with(self, confirmed: Callable[[Position], Position]) -> None:
        """Use this to tell how far the client is known to have come."""
        self._confirmed = confirmed

    @property
    def arrived(self) -> Position:
        """How far the client is known to have come: where its session goes on."""
        return self._confirmed(self.position) if self._confirmed else self.position

    @property
    def is_live(self) -> bool:
        """Whether there is more for it, and it has taken something a short while ago."""
        return self.behind and time.monotonic() - self._moved < LIVE_SECONDS

    @property
    def behind(self) -> bool:
        """Whether the log holds numbers that this reader has not come to."""
        return self._cursor < self._log.next_seq

    def take(self, max_messages: int = 64, max_bytes: int = 2**20) -> Batch:
        """The next messages for this session, or the gap before them.

        Both may be empty. The cursor moves past all that was looked at.
        """
        log = self._log
        gap = log.gap_before(self.position)
        if gap is not None:
            self._skip(gap)
        found = log.read(self.position, max_messages, max_bytes)
        if isinstance(found, list):
            return Batch(gap, self._pass(found))
        self._skip(found)
        if gap is not None:
            found = Gap(gap.messages + found.messages, gap.bytes + found.bytes)
        return Batch(found, [])

    def _skip(self, gap: Gap) -> None:
        self._moved = time.monotonic()
        self._cursor += gap.messages
        self._offset += gap.bytes

    def _pass(self, entries: list[Entry]) -> list[Entry]:
        """Move past these entries; those of them that this session is to see."""
        if entries:
            last = entries[-1]
            self._moved = time.monotonic()
            self._cursor = last.seq + 1
            self._offset = last.offset + len(last.message.frame)
        session = self.session
        return [
            entry
            for entry in entries
            if (entry.owner is None or entry.owner == session)
            and not (entry.transient and entry.seq < self._live_from)
        ]

    async def wait(self) -> None:
        """Return when there may be something to take, or the log is closed."""
        if not self.behind and not self.finished:
            await self._log.wait()

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to take, now or ever."""
        return self.replaced or (self._log.closed and not self.behind)
