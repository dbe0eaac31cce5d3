"""A kernel's log over HTTP: as pages of messages, and as a stream of messages."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from ..managers.executions.contents import raw_json
from ..managers.executions.events import ClosingEvent, Event, GapEvent
from ..managers.executions.history import WholeReader
from ..managers.executions.queue import Executions
from ..managers.log.entries import Entry
from ..managers.log.message_log import MessageLog
from .schemas import union_of

__all__ = ["LogEventModel", "MessageEvent", "MessagesModel", "follow_log", "page"]

PAGE_BYTES: Final = 8 * 2**20
"""A page ends after so many bytes of messages, even if its limit is not reached."""


class MessageEvent(Event, tag="message"):
    """A message of the kernel's."""

    channel: Annotated[str, Meta(examples=["iopub", "shell"])]
    session: Annotated[
        str | None, Meta(description="The session that it is for; null: all; empty: none.")
    ]
    header: msgspec.Raw
    parent_header: msgspec.Raw
    metadata: msgspec.Raw
    content: msgspec.Raw
    buffers: Annotated[list[str], Meta(description="In base64.")]


LogEvent = MessageEvent | GapEvent | ClosingEvent
"""All that `follow_log` may yield."""

LogEventModel = union_of(
    LogEvent, "LogEventModel", "Something that a stream of a kernel's log consists of."
)


class MessagesModel(msgspec.Struct):
    """A page of a kernel's log."""

    epoch: Annotated[
        str,
        Meta(
            description="Of the log: numbers of another epoch mean nothing here. Give it back as "
            "`epoch`, and a stale number is an error."
        ),
    ]
    first: Annotated[int, Meta(description="The oldest number in the log.")]
    next: Annotated[int, Meta(description="The `after` of the next page.")]
    last: Annotated[int, Meta(description="The newest number there is; 0 for none.")]
    gap: Annotated[GapEvent | None, Meta(description="What is gone before these messages.")]
    messages: list[MessageEvent]


async def page(log: MessageLog, after: int, limit: int, epoch: str | None = None) -> MessagesModel:
    """A page with at most ``limit`` messages behind number ``after``.

    Raises `StaleEpoch` or `AfterBeyondEnd`.
    """
    reader = WholeReader(log, log.place_after(after, epoch))
    gap: GapEvent | None = None
    messages: list[MessageEvent] = []
    size = 0
    seen = after
    while len(messages) < limit and size < PAGE_BYTES:
        before = reader.position.cursor
        found, entries = reader.take()
        await asyncio.sleep(0)  # reading a long page must not hold up the event loop
        if found is not None:
            # The race: between two of these reads the keeper may write over a segment that is to be
            # read next, which makes a gap behind the messages of this page. A page has one gap, at
            # its beginning: so it ends here, and the next one begins with that gap.
            if messages:
                break
            seen = before + found.messages - 1
            gone = (gap.messages, gap.bytes) if gap else (0, 0)
            gap = GapEvent(seq=seen, messages=gone[0] + found.messages, bytes=gone[1] + found.bytes)
        for entry in entries[: limit - len(messages)]:
            messages.append(_message(entry))
            seen, size = entry.seq, size + len(entry.message.frame)
            if size >= PAGE_BYTES:
                break
        if not reader.behind:
            break
    return MessagesModel(log.epoch, log.first_seq, seen, log.next_seq - 1, gap, messages)


def follow_log(
    executions: Executions,
    log: MessageLog,
    after: int,
    keepalive: float,
    permission: Callable[[], bool],
    epoch: str | None = None,
) -> AsyncIterator[LogEvent | None]:
    """The messages behind number ``after``, then new ones as they come, until the kernel is gone.

    Yields None after ``keepalive`` seconds without a message. Ends when the log is woken and there
    is no ``permission`` any more. This call itself, and not the iteration, raises `StaleEpoch` or
    `AfterBeyondEnd`.
    """
    reader = WholeReader(log, log.place_after(after, epoch))
    return _follow(executions, reader, keepalive, permission)


async def _follow(
    executions: Executions, reader: WholeReader, keepalive: float, permission: Callable[[], bool]
) -> AsyncIterator[LogEvent | None]:
    while not reader.finished:
        if not permission():
            return
        before = reader.position.cursor
        gap, entries = reader.take()
        if gap is not None:
            yield GapEvent(seq=before + gap.messages - 1, messages=gap.messages, bytes=gap.bytes)
        # At each yield the client may hold this up for long, while the log goes on. Entries that
        # were taken are in memory, even if their file is gone. Messages that the log drops
        # meanwhile are the next gap.
        for entry in entries:
            yield _message(entry)
        if reader.behind:
            continue
        if executions.closing:
            yield ClosingEvent(reason="The server is shutting down")
            return
        if not await reader.wait_for(keepalive):
            yield None
    yield ClosingEvent(reason="The kernel was shut down")


def _message(entry: Entry) -> MessageEvent:
    message = entry.message
    header, parent, metadata, content = (raw_json(message.part(index)) for index in range(4))
    buffers = range(4, 4 + message.buffer_count)
    return MessageEvent(
        seq=entry.seq,
        channel=message.channel,
        session=entry.owner,
        header=header,
        parent_header=parent,
        metadata=metadata,
        content=content,
        buffers=[base64.b64encode(message.part(index)).decode() for index in buffers],
    )
