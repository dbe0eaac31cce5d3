"""The numbered, byte-bounded log of what one kernel said, and its readers.

Every message gets the next sequence number (from 1). The log keeps the newest messages up to a
number of bytes; what falls off the front is remembered by its count and size, so that a reader
whose cursor has fallen off can be told exactly how much is gone. There is no queue per client: a
slow reader falls behind its own cursor and costs nothing but the log.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Final
from weakref import WeakSet

from app.managers.entries import ENTRY_OVERHEAD, Batch, Entry, Gap, Position
from app.managers.errors import AfterBeyondEnd, StaleEpoch
from app.managers.journal import BATCH, Journal
from app.managers.segments import SEGMENT_BYTES, Segments
from app.protocol.messages import Message

__all__ = ["NOBODY", "Batch", "Entry", "Gap", "LogBudget", "MessageLog", "Position", "Reader"]

NOBODY: Final = ""
"""The owner of what is kept in the log and shown to no session."""

LIVE_SECONDS: Final = 30.0
"""How long a reader may take for what it has got, and still count as one that reads."""

SAVED_AT_A_TIME = 1024
"""How many messages go to disk together when all of them do."""


class LogBudget:
    """The bound on what all logs of a server hold in memory together, in bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0
        self._logs: set[MessageLog] = set()

    def add(self, log: MessageLog) -> None:
        """Let a log draw on this budget."""
        self._logs.add(log)

    def remove(self, log: MessageLog) -> None:
        """A log has ended, and holds nothing any more."""
        self._logs.discard(log)
        self.used -= log.bytes

    @property
    def may_hold(self) -> bool:
        """Whether more may wait for the disk in memory, beyond what each log has for that.

        All together twice the bound: a message of hundreds of megabytes may wait behind another.
        """
        waiting = sum(log.segments.waiting for log in self._logs if log.segments)
        return waiting < 2 * self.max_bytes

    def enforce(self) -> None:
        """Let the largest logs go down until the bound holds, or no log has more than one message.

        The largest first: a kernel that says much does not cost the others their memory.
        """
        for log in sorted(self._logs, key=lambda log: log.bytes, reverse=True):
            if self.used <= self.max_bytes:
                return
            log.shrink(log.bytes - (self.used - self.max_bytes))


class MessageLog:
    """The log of one kernel: the newest messages in memory, those before them on disk.

    ``max_bytes`` bounds the frames kept in memory (the newest one stays whatever its size);
    ``segments``, if there are any, take what leaves it. ``budget`` bounds all logs together.
    """

    def __init__(
        self, max_bytes: int, segments: Segments | None = None, budget: LogBudget | None = None
    ) -> None:
        self.max_bytes = max_bytes
        self.segments = segments
        self._budget = budget or LogBudget(max_bytes)
        self._budget.add(self)
        # Numbers of another server process, or of another kernel, mean nothing here.
        self.epoch = secrets.token_hex(8)
        # Where each number is noted, if the kernel is to outlive this process.
        self.journal: Journal | None = None
        self._unnoted = 0  # of the newest; see BATCH
        self.bytes = 0
        self.closed = False
        self._entries: list[Entry] = []
        self._start = 0  # index in _entries of the oldest entry that is kept
        self._next_seq = 1
        self._next_offset = 0
        self._waiting: set[asyncio.Future[None]] = set()
        self._readers: WeakSet[Reader] = WeakSet()
        if segments is not None:
            segments.wanted_from, segments.may_hold = self._wanted_from, self._may_hold
        self._holes: list[tuple[Position, Position]] = []  # in memory; see put_back

    @property
    def start(self) -> Position:
        """The place of the oldest message that is kept; the end when there is none."""
        kept = self.segments.start if self.segments is not None else None
        if kept is not None:
            return kept
        if not self._entries:
            return self.end
        oldest = self._entries[self._start]
        return Position(oldest.seq, oldest.offset)

    @property
    def first_seq(self) -> int:
        """The oldest number kept; equal to `next_seq` when the log is empty."""
        return self.start.cursor

    @property
    def first_in_memory(self) -> int:
        """The oldest number that can be read without waiting for the disk."""
        return self._next_seq - (len(self._entries) - self._start)

    @property
    def next_seq(self) -> int:
        """The number that the next message will get."""
        return self._next_seq

    def append(
        self,
        message: Message,
        owner: str | None = None,
        *,
        transient: bool = False,
        kept: bool = False,
    ) -> Entry:
        """Give ``message`` the next number, keep it, and wake the readers that wait.

        A ``transient`` message is not shown to readers that come later. ``kept``: it is as the
        kernel has published it, so that whoever else listens to that has it too.
        """
        seq, offset, size = self._next_seq, self._next_offset, len(message.frame)
        message.seq = seq
        entry = Entry(seq, offset, message, owner, transient, size + ENTRY_OVERHEAD)
        self._entries.append(entry)
        self._next_seq = seq + 1
        self._next_offset = offset + size
        if self.journal is not None:
            if not kept or self.journal.alone:
                self.note(but=1)
                self.journal.note_whole(entry, published=kept)
            else:
                self._unnoted += 1
                if self._unnoted == BATCH:
                    self.note()
        self._grow(size + ENTRY_OVERHEAD)
        if self._waiting:
            self.wake()
        return entry

    def note_in(self, journal: Journal) -> None:
        """Have every number noted there, those among them that are in memory already."""
        for entry in self._entries[self._start :]:
            journal.note_whole(entry)
        self.journal = journal

    def note(self, *, but: int = 0) -> None:
        """Have every number noted, but for so many of the newest."""
        if self.journal is not None and self._unnoted:
            end = len(self._entries) - but
            self.journal.note_kept(self._entries[end - self._unnoted : end])
        self._unnoted = 0

    # After another process

    def begin_at(self, epoch: str, place: Position) -> None:
        """Go on with the log of another process from ``place``; call before anything else."""
        self.epoch = epoch
        self._next_seq, self._next_offset = place

    def put_back(
        self, message: Message, owner: str | None, place: Position, *, transient: bool
    ) -> None:
        """Have the next message of the other process's log again, in the place it had."""
        message.seq, offset = place
        size = len(message.frame)
        self._entries.append(
            Entry(message.seq, offset, message, owner, transient, size + ENTRY_OVERHEAD)
        )
        self._next_seq, self._next_offset = message.seq + 1, offset + size
        self._grow(size + ENTRY_OVERHEAD)

    def put_back_hole(self, end: Position) -> None:
        """What comes before ``end`` of the other process's log is lost."""
        if end.cursor <= self._next_seq:
            return
        if not self._entries:
            if self.segments is not None:
                self.segments.push_lost(end)
        else:
            if self._holes and self._holes[-1][1] == self.end:
                self._holes[-1] = (self._holes[-1][0], end)
            else:
                self._holes.append((self.end, end))
            # Numbers are places in the list, so each has an entry; nobody gets to read these.
            nothing = self._entries[-1].message
            for seq in range(self._next_seq, end.cursor):
                self._entries.append(Entry(seq, self._next_offset, nothing, None))
        self._next_seq, self._next_offset = end

    def charge(self, entries: Iterable[Entry]) -> None:
        """Count what kept messages have grown by: their frames in the legacy framing."""
        for entry in entries:
            message = entry.message
            # The growth of one may let the next go.
            if message.legacy is not None and entry.seq >= self.first_in_memory:
                size = len(message.frame) + ENTRY_OVERHEAD + len(message.legacy)
                growth, entry.charged = size - entry.charged, size
                self._grow(growth)

    def _grow(self, size: int) -> None:
        budget = self._budget
        self.bytes += size
        budget.used += size
        if self.bytes > self.max_bytes:
            self.shrink(self.max_bytes)
        if budget.used > budget.max_bytes:
            budget.enforce()

    def shrink(self, max_bytes: int) -> None:
        """Let the oldest entries go, to disk if there is one, until this bound holds.

        The newest entry stays.
        """
        entries, start = self._entries, self._start
        if not entries:  # whatever else is to go down: there is nothing here
            return
        last = len(entries) - 1
        if self.segments is not None:
            # A whole segment at a time, but never more than a part of what memory holds.
            max_bytes -= min(SEGMENT_BYTES, self.max_bytes // 4)
        before = self.bytes
        first = start
        while self.bytes > max_bytes and start < last:
            self.bytes -= entries[start].charged
            start += 1
        self._budget.used -= before - self.bytes
        if start > len(entries) - self._unnoted:
            self.note()
        if self._holes:
            self._leave_behind(entries[first:start])
        elif self.segments is not None and start > first:
            self.segments.push(entries[first:start])
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

    def _leave_behind(self, entries: list[Entry]) -> None:
        """Let entries go to disk, and the holes among them."""
        for hole, run in groupby(entries, self._hole_at):
            if self.segments is None:
                break
            if hole is None:
                self.segments.push(list(run))
            else:
                self.segments.push_lost(hole[1])
        if entries:
            last = entries[-1].seq
            self._holes = [hole for hole in self._holes if hole[1].cursor > last + 1]

    def _hole_at(self, entry: Entry) -> tuple[Position, Position] | None:
        for hole in self._holes:
            if hole[0].cursor <= entry.seq < hole[1].cursor:
                return hole
        return None

    async def save(self) -> None:
        """Put all that is in memory on disk too, for the next process. Bounded by the disk."""
        entries = self._entries[self._start :]
        self.note()
        if self.segments is None or not entries:
            return
        self._entries, self._start = [], 0
        self._budget.used -= self.bytes
        self.bytes = 0
        while entries:
            part, entries = entries[:SAVED_AT_A_TIME], entries[SAVED_AT_A_TIME:]
            if self._holes:
                self._leave_behind(part)
            else:
                self.segments.push(part)
            await self.segments.written()

    def _start_bytes(self, start: int) -> int:
        return self._entries[start].offset - self._entries[0].offset

    def read(self, cursor: int, max_messages: int, max_bytes: int) -> list[Entry]:
        """Entries from number ``cursor`` on, at most so many messages or (about) bytes.

        ``cursor`` must not be before `first_in_memory`.
        """
        index = self._start + cursor - self.first_in_memory
        entries = self._entries[index : index + max_messages]
        limit = entries[0].offset + max_bytes if entries else 0
        if entries and entries[-1].offset > limit:
            entries = [entry for entry in entries if entry.offset <= limit]
        if self._holes:
            end = next((start.cursor for start, _ in self._holes if start.cursor >= cursor), None)
            if end is not None:
                entries = entries[: end - cursor]
        return entries

    def gap_before(self, place: Position) -> Gap | None:
        """What lies between a reader's place and the oldest message kept, if anything."""
        start = self.start
        if start.cursor <= place.cursor:
            for first, end in self._holes:
                if first.cursor <= place.cursor < end.cursor:
                    return Gap(end.cursor - place.cursor, max(0, end.offset - place.offset))
            return None
        return Gap(start.cursor - place.cursor, start.offset - place.offset)

    def place_after(self, seq: int, epoch: str | None = None) -> Position:
        """The place after number ``seq`` (0: before the first), which need not be kept any more.

        Raises `StaleEpoch` when ``epoch`` is not this log's, and `AfterBeyondEnd` when no message
        has that number yet.
        """
        if epoch is not None and epoch != self.epoch:
            raise StaleEpoch("epoch: these numbers are not of this kernel's present log")
        if not 0 <= seq < self._next_seq:
            raise AfterBeyondEnd(f"after: the newest number is {self._next_seq - 1}")
        cursor = seq + 1
        if cursor >= self.first_in_memory:
            index = self._start + cursor - self.first_in_memory
            entries = self._entries[index : index + 1]
            return Position(cursor, entries[0].offset) if entries else self.end
        if cursor == 1:
            return Position(1, 0)
        # How many bytes came before it is not known to the byte; the first read will tell.
        kept = self.segments.start if self.segments is not None else None
        return Position(cursor, kept.offset if kept is not None else self.start.offset)

    async def read_from_disk(self, place: Position) -> Gap | list[Entry] | None:
        """Messages from ``place`` on, or what is lost of them; None if they are in memory."""
        if self.segments is None or place.cursor >= self.first_in_memory:
            return None
        return await self.segments.read(place)

    @property
    def end(self) -> Position:
        """Where the next message will be."""
        return Position(self._next_seq, self._next_offset)

    def close(self) -> None:
        """Nothing more will come: let the readers end once they have read the rest."""
        if not self.closed:
            self.closed = True
            self._budget.remove(self)
            # What is still said or sent of it counts no more for the others.
            self._budget = LogBudget(self.max_bytes)
            self._budget.add(self)
            self._budget.used = self.bytes
        self.wake()

    async def remove_files(self) -> None:
        """Remove what is on disk; a reader that has not come to it is told of a gap."""
        if self.segments is not None:
            await self.segments.close()

    def _may_hold(self) -> bool:
        """Whether what the disk is too slow for stays in memory: a reader is about to read it."""
        return self._wanted_from() is not None and self._budget.may_hold

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
        """The next messages for this session in memory, and the gap before them.

        Both may be empty. The cursor moves past all that was looked at.
        """
        log = self._log
        gap = log.gap_before(self.position)
        if gap is not None:
            self._skip(gap)
        if self._cursor < log.first_in_memory:  # see fetch
            return Batch(gap, [])
        return Batch(gap, self._pass(log.read(self._cursor, max_messages, max_bytes)))

    async def fetch(self) -> Batch:
        """The next messages for this session, from disk if they are there; as `take`."""
        batch = self.take()
        if batch.gap is not None or batch.entries:
            return batch
        found = await self._log.read_from_disk(self.position)
        if found is None:
            return batch
        if isinstance(found, Gap):
            self._skip(found)
            return Batch(found, [])
        return Batch(None, self._pass(found))

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
