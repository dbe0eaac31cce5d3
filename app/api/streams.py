"""Streams of events over HTTP: Server-Sent Events or lines of JSON, as the client prefers.

An event is sent as soon as it happens. In a long silence a comment or a blank line is sent, so that
no proxy takes the connection for dead.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated, Final, Protocol, TypeVar

import msgspec
from fastapi import Header, Query, Request
from starlette.responses import StreamingResponse
from starlette.types import Message, Send

from ..managers.errors import InvalidRequest

__all__ = [
    "NDJSON",
    "SSE",
    "STREAM_HEADERS",
    "AfterDep",
    "EventStream",
    "JSONLines",
    "LastEventIdDep",
    "resume_after",
    "wants",
    "while_permitted",
]

SSE: Final = "text/event-stream"
NDJSON: Final = "application/x-ndjson"

STREAM_HEADERS: Final = {
    "Cache-Control": "no-store, no-transform",  # a proxy that compresses would hold events back
    "X-Accel-Buffering": "no",
}

Event = TypeVar("Event")

_encode = msgspec.json.Encoder().encode


class StreamEvent(Protocol):
    """An event that can be streamed."""

    @property
    def seq(self) -> int | None:
        """The event's number in the log, if it has one."""

    @property
    def resumable(self) -> bool:
        """Whether a client that has received the event can resume behind its number."""


AfterDep = Annotated[
    int | None, Query(ge=0, description="Only what has a larger number than this.")
]
LastEventIdDep = Annotated[
    str | None,
    Header(
        description="As `after`, and stronger: what browsers send when they reconnect.",
        json_schema_extra={"pattern": "^[0-9]{0,19}$"},
    ),
]


def resume_after(after: int | None, last_event_id: str | None) -> int | None:
    """The number behind which a client wants to go on. Raises `InvalidRequest`."""
    if not last_event_id:
        return after
    if not (last_event_id.isascii() and last_event_id.isdigit() and len(last_event_id) < 20):
        raise InvalidRequest("Last-Event-ID: must be a number")
    return int(last_event_id)


def wants(request: Request) -> str | None:
    """The kind of stream that a client asks for: the first that it names, or None for neither."""
    accepted = ",".join(request.headers.getlist("accept")).lower()
    named = [
        media_type.partition(";")[0].strip() for media_type in accepted.split(",") if media_type
    ]
    return next((media_type for media_type in named if media_type in (SSE, NDJSON)), None)


async def while_permitted(
    events: AsyncIterator[Event], permission: Callable[[], bool]
) -> AsyncIterator[Event]:
    """The events, as long as the client may get them: a share of a kernel can end meanwhile."""
    # The permission is looked at for each event: the iteration may have waited while the share has
    # ended, and then go on with an event that the client must not get.
    async for event in events:
        if not permission():
            return
        yield event


class EventStream(StreamingResponse):
    """Server-Sent Events. They have no ``event`` field, for the data tells the type of an event,
    and a browser would take an event named ``error`` for its own."""

    media_type = SSE
    blank = b":\n\n"

    def __init__(self, events: AsyncIterator[StreamEvent | None]) -> None:
        super().__init__(self._lines(events), headers=STREAM_HEADERS)

    async def _lines(self, events: AsyncIterator[StreamEvent | None]) -> AsyncIterator[bytes]:
        async for event in events:
            yield self.blank if event is None else self.line(event)

    def line(self, event: StreamEvent) -> bytes:
        """The bytes of an event in the stream."""
        data = b"data: %b\n" % _encode(event)
        if event.seq is None or not event.resumable:
            return data + b"\n"
        # The id comes last. Wherever the connection breaks, a client that has the id has the data.
        return b"%bid: %d\n\n" % (data, event.seq)

    async def stream_response(self, send: Send) -> None:
        """Send the headers at once, before there is an event, and then each event."""

        async def send_started(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.start":
                await send({"type": "http.response.body", "body": b"", "more_body": True})

        await super().stream_response(send_started)


class JSONLines(EventStream):
    """A stream with one event of JSON a line; blank lines mean nothing."""

    media_type = NDJSON
    blank = b"\n"

    def line(self, event: StreamEvent) -> bytes:
        """The bytes of an event in the stream."""
        return _encode(event) + b"\n"
