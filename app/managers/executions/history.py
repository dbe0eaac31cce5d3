"""Reading a kernel's log as history: all of it, or the messages of one execution."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from ..log.entries import Batch, Entry, Gap, Position
from ..log.message_log import MessageLog, Reader
from .execution import Execution

__all__ = ["ExecutionReader", "WholeReader", "late_output"]


class WholeReader(Reader):
    """A reader that sees the messages of every session, and the requests that were sent."""

    def __init__(self, log: MessageLog, start: Position) -> None:
        super().__init__(log, "", start)

    def _pass(self, entries: list[Entry]) -> list[Entry]:
        super()._pass(entries)
        return entries

    async def wait_for(self, seconds: float) -> bool:
        """Do `wait` for at most ``seconds``; returns whether there may be something to take."""
        try:
            async with asyncio.timeout(seconds):
                await self.wait()
        except TimeoutError:
            return False
        return True


class ExecutionReader:
    """Reads the messages of one execution, from behind number ``after`` if that is given.

    With ``updates`` it also reads updates of displays that other executions make: the caller picks
    those of displays that this execution shows.
    """

    def __init__(
        self,
        log: MessageLog,
        execution: Execution,
        after: int | None = None,
        *,
        updates: bool = False,
    ) -> None:
        self._log = log
        self._execution = execution
        self._updates = updates
        start = execution.place
        if after is not None and after >= start.cursor:
            start = log.place_after(after)
        self._reader = WholeReader(log, start)
        self.gone_to = 0
        """The last number in the gap that was found last."""

    @property
    def cursor(self) -> int:
        """The number that is read next."""
        return self._reader.position.cursor

    @property
    def finished(self) -> bool:
        """Whether the execution has ended, and its messages in the log have been read."""
        end = self._execution.end
        return end is not None and self.cursor >= end.cursor

    async def fetch(self) -> Batch:
        """The next messages of the execution, and the gap before them in the log, if there is one.

        Both may be empty although more can be read: ask `behind`.
        """
        execution, reader = self._execution, self._reader
        if not execution.sent:
            return Batch(None, [])
        # The place moves forward when the request is sent, and again when the kernel goes busy:
        # nothing of the execution lies before it, however long this reader has waited.
        if self.cursor < execution.place.cursor:
            reader = self._reader = WholeReader(self._log, execution.place)
        # From here to the look at the end nothing is awaited: what was read and where the execution
        # ends belong together.
        before = reader.position
        gap, entries = reader.take()
        # Without an end, all messages that can be read now may be the execution's. Messages and
        # gaps behind its end are not.
        end = execution.end
        if end is not None:
            if gap is not None and before.cursor + gap.messages > end.cursor:
                gap = Gap(end.cursor - before.cursor, end.offset - before.offset)
            entries = [entry for entry in entries if entry.seq < end.cursor]
        if gap is not None:
            self.gone_to = before.cursor + gap.messages - 1
        # There may be much to read: the loop's other tasks get a turn. The execution may end in
        # that turn; the next `fetch` reads its messages up to the end.
        await asyncio.sleep(0)
        return Batch(gap, [entry for entry in entries if self._is_of_it(entry)])

    def _is_of_it(self, entry: Entry) -> bool:
        return _is_of(self._execution, entry, updates=self._updates)

    @property
    def behind(self) -> bool:
        """Whether more of the execution can be read now."""
        return self._execution.sent and not self.finished and self._reader.behind

    async def wait_for(self, seconds: float) -> bool:
        """Wait for more to read, or a change of the execution; False after ``seconds``."""
        if self._execution.sent:
            return await self._reader.wait_for(seconds)
        try:  # the reader stays where it is: messages before the execution are not read
            async with asyncio.timeout(seconds):
                await self._log.wait()
        except TimeoutError:
            return False
        return True


def _is_of(execution: Execution, entry: Entry, *, updates: bool) -> bool:
    message = entry.message
    if entry.owner is not None and entry.owner != execution.session:
        return False
    return message.parent.msg_id == execution.id or (
        updates and message.msg_type == "update_display_data"
    )


async def late_output(log: MessageLog, execution: Execution) -> AsyncIterator[Batch]:
    """The messages of an execution that came after its end, up to now.

    Updates of displays that other executions make are among them.
    """
    # Only up to here, as a thread may print without end. Stretches that are noted while this reads
    # lie behind that number.
    now = log.next_seq
    for stretch in execution.late.stretches() if execution.late is not None else ():
        reader, end = WholeReader(log, stretch.start), min(stretch.end, now)
        while reader.behind and (cursor := reader.position.cursor) < end:
            gap, entries = reader.take()
            if gap is not None:
                gap = Gap(min(gap.messages, end - cursor), gap.bytes)
            found = [entry for entry in entries if entry.seq < end]
            yield Batch(gap, [one for one in found if _is_of(execution, one, updates=True)])
            await asyncio.sleep(0)  # as in `ExecutionReader.fetch`
