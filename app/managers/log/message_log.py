"""The numbered, byte-bounded log of one kernel's messages, and its readers.

Every message gets the next sequence number (from 1). The log holds the newest messages up to a
number of bytes. A place has both a number and the bytes of all messages before it, so a reader
whose cursor has fallen off the front can be told exactly how much is gone. There is no queue per
client: a slow reader falls behind its own cursor and costs nothing but the log.

Two processes share a log's files: the keeper appends, and may drop or write over the oldest file
at any time; the server reads. Three rules make that safe. The keeper writes records before it rings
the bell that tells their end, and the server reads no further than the last bell. Each record has
its own number, and each file's head its first one: a reader that finds another number in a file has
met a gap, never a wrong message. And a file's head is read again after its records: if it has
changed meanwhile, the records are thrown away (`SegmentReader._read`).
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
from ...keeper.open_files import OpenFiles
from ...protocol.link import Bell
from ...protocol.messages import Message
from ..errors import AfterBeyondEnd, StaleEpoch
from .entries import Batch, Entry, Gap, Position
from .large_frames import Large
from .segments import SegmentReader

__all__ = ["NOBODY", "Batch", "Entry", "Gap", "MessageLog", "Position", "Reader"]

logger = logging.getLogger(__name__)

SHARED_BYTES: Final = 2**20
"""Up to how many bytes the entries read last are held for other readers at the same place."""


class MessageLog:
    """The log of one kernel, which the keeper writes, and the readers that wait for it.

    ``directory`` is the log's own. If ``shown`` is given, readers see what it returns for each
    message of the kernel. ``files`` bounds how many files are open, together with other logs.

    The keeper tells how far the log is written (``_written``). Readers see it up to `end`, which
    `Traffic` moves once it has drawn its conclusions: no client sees a message before the state and
    the executions that follow from it.
    """

    def __init__(
        self,
        directory: Path,
        kernel_id: str,
        shown: Callable[[Message], Message] | None = None,
        files: OpenFiles | None = None,
    ) -> None:
        self.directory = directory
        # Names the log: numbers of a log with another epoch mean nothing here. Until the keeper has
        # opened the log, this is the name that a new one is to have.
        self.epoch = secrets.token_hex(8)
        self.closed = False
        self.is_cut_off = False
        """Whether the newest file cannot be opened, so that messages written to it are lost."""
        self._shown = shown
        self._files = SegmentReader(directory, kernel_id, files)
        self._first = self._end = self._written = Position(1, 0)
        self._tip = Tip(0, 0)
        self._waiting: set[asyncio.Future[None]] = set()
        # The entries read last, and the number they begin at. Most readers are at the same place,
        # and share them, which is safe as no reader changes an entry or the list.
        self._last: tuple[int, list[Entry]] = (0, [])
        self._warned = False

    @property
    def bytes(self) -> int:
        """How many bytes the messages in the log have."""
        return max(0, self._written.offset - self._first.offset)

    @property
    def start(self) -> Position:
        """The place of the oldest message in the log; the end when there is none."""
        return self._first

    @property
    def first_seq(self) -> int:
        """The number of the oldest message in the log; `next_seq` when the log is empty."""
        return self._first.cursor

    @property
    def next_seq(self) -> int:
        """The number behind all messages that readers see."""
        return self._end.cursor

    @property
    def end(self) -> Position:
        """The place behind all messages that readers see."""
        return self._end

    @property
    def unseen(self) -> bool:
        """Whether messages are written that readers do not see yet."""
        return self._end.cursor < self._written.cursor

    # Following the keeper

    def begin_at(self, epoch: str, bell: Bell) -> None:
        """Begin with the log that a keeper has opened; readers do not see more of it yet."""
        if epoch != self.epoch:  # another log: the shared entries have numbers of the earlier log
            self.epoch = epoch
            self._last = (0, [])
        self._files.forget()
        self.advance(bell)

    def advance(self, bell: Bell) -> None:
        """Take the ends of the log from a bell. A bell that cannot be true is ignored."""
        # Ends only grow, even from one keeper to the next (see `Line.known`), and bells come in
        # order: a bell that goes back is an error of the keeper. The first place may be too low
        # (`Hearings.ring_for`): a reader finds no file there, and then a gap.
        if bell.end[0] < self._written.cursor or bell.first > bell.end:
            return
        self._first, self._written = Position(*bell.first), Position(*bell.end)
        self._tip = Tip(*bell.tip)
        self._files.newest = self._tip.segment
        # Messages were dropped before this server has read them. `LogReading.on_bell` sees that the
        # end has moved, and takes all requests for doubtful.
        if self._end.cursor < self._first.cursor:
            self._end = self._first
        self._files.forget_before(self._first.cursor)

    def next_unseen(self, max_messages: int, max_bytes: int) -> list[Entry] | Gap:
        """The entries behind the `end` that readers see; of a large frame only the beginning."""
        return self._read(self._end, self._written, max_messages, max_bytes, Large.BEGINNING)

    def step(self, entry: Entry) -> None:
        """Let readers see the next entry as well. The caller wakes them later."""
        # Later in the same turn, once for a whole batch: no reader runs in between.
        self._end = Position(entry.seq + 1, entry.offset + entry.size)

    def show(self, place: Position) -> None:
        """Let readers see all messages before a place, and wake those that wait."""
        self._end = place
        self.wake()

    # Reading

    def read(
        self, place: Position, max_messages: int, max_bytes: int, large: Large = Large.WHOLE
    ) -> Gap | list[Entry]:
        """Entries from ``place`` on, or the gap that begins there.

        At most ``max_messages``, and about ``max_bytes``; ``large`` frames may come mapped. The
        ``place`` must not be before `start`. An empty list means that the reader has come to the
        `end`.
        """
        return self._read(place, self._end, max_messages, max_bytes, large)

    def _read(
        self,
        place: Position,
        end: Position,
        max_messages: int,
        max_bytes: int,
        large: Large = Large.WHOLE,
    ) -> Gap | list[Entry]:
        # These may be entries that readers are not to see yet, read by `next_unseen`. They become
        # visible (`step`) in the turn in which they were read, and no reader looks in between.
        cursor, entries = self._last
        if entries and cursor == place.cursor and len(entries) <= max_messages:
            return entries
        if place.cursor >= end.cursor:
            return []
        files = self._files
        entries = files.read(place, end, max_messages, max_bytes, large=large)
        # The file of that name may be gone although an open descriptor still reads it, so this is
        # asked only when nothing was found: it costs a system call.
        self.is_cut_off = not entries and not files.has_newest()
        if files.trouble and not self._warned and place.cursor >= self._first.cursor:
            logger.warning("a part of a kernel's log is lost: %s", files.trouble)
            self._warned = True
        if not entries:  # the file is damaged, or was never written
            # Never an empty list: the reader would wait for a bell, and then find the same again.
            behind = files.behind_damage(place, self._tip, self._written)
            return _gap(place, min(behind, end))
        first, last = entries[0], entries[-1]
        if first.seq > place.cursor:
            return _gap(place, Position(first.seq, first.offset))
        if len(first.message.frame) != first.size:  # only the beginning of its frame was read
            return entries  # not to be shared with readers who need all of it
        if self._shown is not None:
            for entry in entries:
                if entry.published:
                    self._hide(entry, self._shown)
        if last.offset - first.offset + last.size <= SHARED_BYTES:
            self._last = (place.cursor, entries)
        return entries

    def _hide(self, entry: Entry, shown: Callable[[Message], Message]) -> None:
        # Before the entries are shared, so once for all readers; the file keeps the original.
        message = shown(entry.message)
        message.seq, message.offset = entry.seq, entry.offset
        entry.message = message

    def gap_before(self, place: Position) -> Gap | None:
        """The gap between a reader's place and the oldest message in the log, if there is one."""
        start = self.start
        if start.cursor <= place.cursor:
            return None
        return _gap(place, start)

    def place_after(self, seq: int, epoch: str | None = None) -> Position:
        """The place after number ``seq`` (0: before the first), which the log may have dropped.

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
        # The message is gone, and its offset with it. So a reader that begins here is told wrong
        # bytes for its first gap; behind that gap its offset is right.
        return Position(cursor, start.offset)

    def place_of(self, number: int) -> Position:
        """The place of a number in the log, even if readers do not see that message yet."""
        if number >= self._written.cursor:
            return self._written
        place = Position(number, self._first.offset)
        found = self._read(place, self._written, 1, 0)
        return Position(number, found[0].offset) if isinstance(found, list) and found else place

    def close(self) -> None:
        """Close the log, as no message will follow: readers end when they have read the rest."""
        self.closed = True
        self.wake()

    def hold(self) -> None:
        """Hold the newest file open, so that readers get its messages although it is removed."""
        self._files.hold_newest()

    def let_go(self) -> None:
        """Close the files: no reader needs them any more."""
        self._files.let_go()

    def wake(self) -> None:
        """Let every waiting reader look again."""
        # The order does not matter: each reader reads from its own place.
        for waiter in self._waiting:
            if not waiter.done():  # its task may have been cancelled in this turn
                waiter.set_result(None)
        self._waiting.clear()

    async def wait(self) -> None:
        """Return at the next `wake`, as for each message. Has no timeout: kernels may be quiet.

        The caller must not await between looking at the log and calling this: it would miss a
        message that comes in between.
        """
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            await waiter
        finally:  # `wake` has cleared the set, unless this task was cancelled
            self._waiting.discard(waiter)


def _gap(place: Position, behind: Position) -> Gap:
    """The gap between two places."""
    return Gap(behind.cursor - place.cursor, max(0, behind.offset - place.offset))


class Reader:
    """One client's cursor into a log, and its filter.

    It sees the messages for every session and those for its own, from ``start`` on (None: from the
    present end of the log).
    """

    def __init__(self, log: MessageLog, session: str, start: Position | None = None) -> None:
        self.session = session
        self.replaced = False  # whether a newer connection of the session has taken its place
        self.large = Large.WHOLE
        """How large frames come: `Large.MAPPED` for a client that is sent them as they are."""
        self._log = log
        self._confirmed: Callable[[Position], Position] | None = None
        self._cursor, self._offset = start or log.end
        self._live_from = log.next_seq

    @property
    def position(self) -> Position:
        """The place that is read next; a later reader can start there."""
        return Position(self._cursor, self._offset)

    def confirm_with(self, confirmed: Callable[[Position], Position]) -> None:
        """Have ``confirmed`` tell how far the client has come, of the `position` that it gets."""
        self._confirmed = confirmed

    @property
    def arrived(self) -> Position:
        """The place up to which messages are known to have arrived: its session goes on there.

        It may lie before `position`: a message that was read and sent may be lost on the way.
        """
        # For a client that confirms nothing, every message taken counts as arrived. Those under way
        # when its connection broke are lost for it, and none is sent twice.
        return self._confirmed(self.position) if self._confirmed else self.position

    @property
    def behind(self) -> bool:
        """Whether the log has messages that this reader has not come to."""
        return self._cursor < self._log.next_seq

    def take(self, max_messages: int = 64, max_bytes: int = 2**20) -> Batch:
        """The next messages for this session, and the gap before them, if there is one.

        Both may be empty. The cursor moves past all messages that were read, shown or not.
        """
        log = self._log
        gap = log.gap_before(self.position)
        if gap is not None:
            self._skip(gap)
        # The keeper may drop the oldest file at this moment, before its bell tells so. Then no
        # record is found at the cursor, and `read` returns a gap rather than entries.
        found = log.read(self.position, max_messages, max_bytes, self.large)
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
        """Move past these entries; returns those that this session is to see."""
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
        """Return when there may be something to take, or the log is closed.

        No message is missed between the look and the wait: neither is suspended in between.
        """
        if not self.behind and not self.finished:
            await self._log.wait()

    @property
    def finished(self) -> bool:
        """Whether there is nothing more to take, now or ever."""
        return self.replaced or (self._log.closed and not self.behind)
