"""The numbered, byte-bounded log of what one kernel said, and its readers.

Every message gets the next sequence number (from 1). The log keeps the newest messages up to a
number of bytes; what falls off the front is remembered by its count and size, so that a reader
whose cursor has fallen off can be told exactly how much is gone. There is no queue per client: a
slow reader falls behind its own cursor and costs nothing but the log.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Final

from ...keeper.hearing import NOBODY
from ...keeper.log import Tip
from ...protocol.link import Bell
from ...protocol.messages import Message
from ..errors import AfterBeyondEnd, StaleEpoch
from .entries import Batch, Entry, Gap, Position
from .segments import SegmentReader

__all__ = ["NOBODY", "Batch", "Entry", "Gap", "MessageLog", "Position", "Reader"]

logger = logging.getLogger(__name__)

SHARED_BYTES: Final = 2**20
"""Up to this size what was read last is kept for readers that are level."""


class MessageLog:
    """The log of one kernel, as far as it has been read here, and its readers.

    Another process may write it (`app.keeper`). ``directory`` is the log's own. Where ``shown`` is
    given, readers see what it makes of the kernel's messages.
    """

    def __init__(
        self, directory: Path, kernel_id: str, shown: Callable[[Message], Message] | None = None
    ) -> None:
        self.directory = directory
        # Numbers of another log mean nothing here. Until the log is there this is its name to be.
        self.epoch = secrets.token_hex(8)
        self.closed = False
        self.is_cut_off = False
        """Whether nothing can be read of what its writer writes to the newest file."""
        self._shown = shown
        self._files = SegmentReader(directory, kernel_id)
        self._first = self._end = self._written = Position(1, 0)
        self._tip = Tip(0, 0)
        self._waiting: set[asyncio.Future[None]] = set()
        # What was read last: readers that are level with each other read the same.
        self._last: tuple[int, list[Entry]] = (0, [])
        self._warned = False

    @property
    def bytes(self) -> int:
        """What the messages that are kept have together."""
        return max(0, self._written.offset - self._first.offset)

    @property
    def start(self) -> Position:
        """The place of the oldest message that is kept; the end when there is none."""
        return self._first

    @property
    def first_seq(self) -> int:
        """The oldest number kept; equal to `next_seq` when the log is empty."""
        return self._first.cursor

    @property
    def next_seq(self) -> int:
        """The number behind all that readers see."""
        return self._end.cursor

    @property
    def end(self) -> Position:
        """The place behind all that readers see."""
        return self._end

    @property
    def unseen(self) -> bool:
        """Whether there is more than readers see."""
        return self._end.cursor < self._written.cursor

    # Its writer

    def begin_at(self, epoch: str, bell: Bell) -> None:
        """This is the log; readers see nothing yet."""
        if epoch != self.epoch:
            self.epoch = epoch
            self._last = (0, [])
        self._files.forget()
        self.advance(bell)

    def advance(self, bell: Bell) -> None:
        """The log goes so far now. What its writer tells is not believed where it cannot be."""
        if bell.end[0] < self._written.cursor or bell.first > bell.end:
            return
        self._first, self._written = Position(*bell.first), Position(*bell.end)
        self._tip = Tip(*bell.tip)
        self._files.newest = self._tip.segment
        if self._end.cursor < self._first.cursor:
            self._end = self._first
        self._files.forget_before(self._first.cursor)

    def next_unseen(self, max_messages: int, max_bytes: int) -> list[Entry] | Gap:
        """What comes behind the `end` that readers see; of large output its beginning will do."""
        return self._read(self._end, self._written, max_messages, max_bytes, heads=True)

    def step(self, entry: Entry) -> None:
        """Readers see this entry, the next one, too; they are to be woken."""
        self._end = Position(entry.seq + 1, entry.offset + entry.size)

    def show(self, place: Position) -> None:
        """Readers see what lies before this place, and those that wait are woken."""
        self._end = place
        self.wake()

    # Reading

    def read(self, place: Position, max_messages: int, max_bytes: int) -> Gap | list[Entry]:
        """Entries from ``place`` on, at most so many messages or (about) bytes; or what is lost.

        ``place`` must not be before `start`. Nothing is left when the list is empty.
        """
        return self._read(place, self._end, max_messages, max_bytes)

    def _read(
        self,
        place: Position,
        end: Position,
        max_messages: int,
        max_bytes: int,
        *,
        heads: bool = False,
    ) -> Gap | list[Entry]:
        cursor, entries = self._last
        if entries and cursor == place.cursor and len(entries) <= max_messages:
            return entries
        if place.cursor >= end.cursor:
            return []
        files = self._files
        entries = files.read(place, end, max_messages, max_bytes, heads=heads)
        self.is_cut_off = not entries and not files.has_newest()
        if files.trouble and not self._warned and place.cursor >= self._first.cursor:
            logger.warning("a part of a kernel's log is lost: %s", files.trouble)
            self._warned = True
        if not entries:  # it is damaged, or was never written
            behind = files.behind_damage(place, self._tip, self._written)
            return _gap(place, min(behind, end))
        first, last = entries[0], entries[-1]
        if first.seq > place.cursor:
            return _gap(place, Position(first.seq, first.offset))
        if len(first.message.frame) != first.size:  # it is for nobody who shows it
            return entries
        if self._shown is not None:
            for entry in entries:
                if entry.published:
                    self._hide(entry, self._shown)
        if last.offset - first.offset + last.size <= SHARED_BYTES:
            self._last = (place.cursor, entries)
        return entries

    def _hide(self, entry: Entry, shown: Callable[[Message], Message]) -> None:
        message = shown(entry.message)
        message.seq, message.offset = entry.seq, entry.offset
        entry.message = message

    def gap_before(self, place: Position) -> Gap | None:
        """What lies between a reader's place and the oldest message kept, if anything."""
        start = self.start
        if start.cursor <= place.cursor:
            return None
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

    def place_of(self, number: int) -> Position:
        """Where a number that is kept lies, also of what readers do not see yet."""
        if number >= self._written.cursor:
            return self._written
        place = Position(number, self._first.offset)
        found = self._read(place, self._written, 1, 0)
        return Position(number, found[0].offset) if isinstance(found, list) and found else place

    def close(self) -> None:
        """Nothing more will come: let the readers end once they have read the rest."""
        self.closed = True
        self.wake()

    def hold(self) -> None:
        """The files are about to be removed: readers still get what is in the newest one."""
        self._files.hold_newest()

    def let_go(self) -> None:
        """Nobody reads any more: close the files."""
        self._files.let_go()

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
        self._cursor += gap.messages
        self._offset += gap.bytes

    def _pass(self, entries: list[Entry]) -> list[Entry]:
        """Move past these entries; those of them that this session is to see."""
        if entries:
            last = entries[-1]
            self._cursor = last.seq + 1
            self._offset = last.offset + last.size
        session = self.session
        return [
            entry
            for entry in entries
            if (entry.owner is None or entry.owner == session)
            and not entry.is_request
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
