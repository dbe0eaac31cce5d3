"""The numbered, byte-bounded log of what one kernel said, and its readers.

Every message gets the next sequence number (from 1). The log keeps the newest messages up to a
number of bytes; what falls off the front is remembered by its count and size, so that a reader
whose cursor has fallen off can be told exactly how much is gone. There is no queue per client: a
slow reader falls behind its own cursor and costs nothing but the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final, NamedTuple

from app.protocol.messages import Message

__all__ = ["Batch", "Entry", "Gap", "MessageLog", "Position", "Reader"]

# What an entry costs beside its frame: the message, its header structs, its offsets.
ENTRY_OVERHEAD: Final = 700


class Entry:
    """One message in the log. ``owner`` is the session it is for; None is every session."""

    __slots__ = ("charged", "message", "offset", "owner", "seq")

    def __init__(self, seq: int, offset: int, message: Message, owner: str | None) -> None:
        self.seq = seq
        self.offset = offset  # bytes of all messages before this one, since the log began
        self.message = message
        self.owner = owner
        self.charged = len(message.frame) + ENTRY_OVERHEAD  # what the log counts for it


class Gap(NamedTuple):
    """What a reader will never see: it had left the log before the reader came to it."""

    messages: int
    bytes: int


class Position(NamedTuple):
    """A place in a log: the next number to read, and the bytes of all messages before it."""

    cursor: int
    offset: int


class Batch(NamedTuple):
    """What a reader took: perhaps a gap, then messages in order."""

    gap: Gap | None
    entries: list[Entry]


class MessageLog:
    """The log of one kernel, in memory.

    ``max_bytes`` bounds the frames kept (the newest one stays whatever its size).
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.closed = False
        self._entries: list[Entry] = []
        self._start = 0  # index in _entries of the oldest entry that is kept
        self._next_seq = 1
        self._next_offset = 0
        self._waiting: set[asyncio.Future[None]] = set()

    @property
    def first_seq(self) -> int:
        """The oldest number kept; equal to `next_seq` when the log is empty."""
        return self._next_seq - (len(self._entries) - self._start)

    @property
    def next_seq(self) -> int:
        """The number that the next message will get."""
        return self._next_seq

    def append(self, message: Message, owner: str | None = None) -> Entry:
        """Give ``message`` the next number, keep it, and wake the readers that wait."""
        entry = Entry(self._next_seq, self._next_offset, message, owner)
        self._entries.append(entry)
        self._next_seq += 1
        self._next_offset += len(message.frame)
        self.bytes += entry.charged
        if self.bytes > self.max_bytes:
            self._trim()
        if self._waiting:
            self.wake()
        return entry

    def charge(self, entries: Iterable[Entry]) -> None:
        """Count what kept messages have grown by: their frames in the legacy framing."""
        first = self.first_seq
        for entry in entries:
            message = entry.message
            if message.legacy is not None and entry.seq >= first:
                size = len(message.frame) + ENTRY_OVERHEAD + len(message.legacy)
                self.bytes += size - entry.charged
                entry.charged = size
        if self.bytes > self.max_bytes:
            self._trim()

    def _trim(self) -> None:
        entries, start = self._entries, self._start
        last = len(entries) - 1
        while self.bytes > self.max_bytes and start < last:
            self.bytes -= entries[start].charged
            start += 1
        # Clear in steps: a deletion moves the rest of the list, so it must stay rare, yet a
        # large message that has left the log must not stay in memory.
        if (
            start > 1024
            or start * 2 > len(entries)
            or self._start_bytes(start) > self.max_bytes // 8
        ):
            del entries[:start]
            start = 0
        self._start = start

    def _start_bytes(self, start: int) -> int:
        return self._entries[start].offset - self._entries[0].offset

    def read(self, cursor: int, max_messages: int, max_bytes: int) -> list[Entry]:
        """Entries from number ``cursor`` on, at most so many messages or (about) bytes.

        ``cursor`` must not be before `first_seq`.
        """
        index = self._start + cursor - self.first_seq
        entries = self._entries[index : index + max_messages]
        limit = entries[0].offset + max_bytes if entries else 0
        if entries and entries[-1].offset > limit:
            entries = [entry for entry in entries if entry.offset <= limit]
        return entries

    def gap_before(self, offset: int, cursor: int) -> Gap | None:
        """What lies between a reader's cursor and the oldest entry kept, if anything."""
        missing = self.first_seq - cursor
        if missing <= 0:
            return None
        oldest = self._entries[self._start].offset if self._entries else self._next_offset
        return Gap(missing, oldest - offset)

    @property
    def end(self) -> Position:
        """Where the next message will be."""
        return Position(self._next_seq, self._next_offset)

    def close(self) -> None:
        """Nothing more will come: let the readers end once they have read the rest."""
        self.closed = True
        self.wake()

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


class Reader:
    """One client's cursor into a log, and its filter.

    It sees what is for every session and what is for its own, from ``start`` on (None: from now).
    """

    def __init__(self, log: MessageLog, session: str, start: Position | None = None) -> None:
        self.session = session
        self.replaced = False  # by a newer connection of the same session
        self._log = log
        self._cursor, self._offset = start or log.end

    @property
    def position(self) -> Position:
        """Where it will read next; a later reader can start there."""
        return Position(self._cursor, self._offset)

    @property
    def behind(self) -> bool:
        """Whether the log holds numbers that this reader has not come to."""
        return self._cursor < self._log.next_seq

    def take(self, max_messages: int = 64, max_bytes: int = 2**20) -> Batch:
        """The next messages for this session, and the gap before them; both may be empty.

        The cursor moves past all that was looked at.
        """
        log = self._log
        gap = log.gap_before(self._offset, self._cursor)
        if gap is not None:
            self._cursor += gap.messages
            self._offset += gap.bytes
        entries = log.read(self._cursor, max_messages, max_bytes)
        if entries:
            last = entries[-1]
            self._cursor = last.seq + 1
            self._offset = last.offset + len(last.message.frame)
        session = self.session
        mine = [entry for entry in entries if entry.owner is None or entry.owner == session]
        return Batch(gap, mine)

    async def wait(self) -> None:
        """Return when there may be something to take, or the log is closed."""
        if not self.behind and not self.finished:
            await self._log.wait()

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to take, now or ever."""
        return self.replaced or (self._log.closed and not self.behind)
