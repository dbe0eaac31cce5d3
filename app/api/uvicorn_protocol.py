"""uvicorn's protocols, made stricter: malformed and oversized requests are refused.

A refused request never reaches the application. It is answered with an error body like any other,
and its connection is closed. What connections cost is bounded: bytes and seconds of each, and the
number of all, which take at most half of the file descriptors.
"""

from __future__ import annotations

import asyncio
import heapq
import http
import math
from collections.abc import Iterator
from typing import Any, Final

from websockets.datastructures import Headers
from websockets.exceptions import InvalidHeader
from websockets.http11 import Response
from websockets.typing import StatusLike

from ..uvicorn_internals import HTTPProtocol, RequestResponseCycle
from ..ws.uvicorn_protocol import KernelkeepWebSocketProtocol
from .errors import STANDARD_HEADERS, code_of, error_response

__all__ = [
    "MAX_HEAD_BYTES",
    "Connections",
    "KernelkeepHTTPProtocol",
    "StrictWebSocketProtocol",
]

MAX_HEAD_BYTES: Final = 65536
"""Bytes that a request's target and headers may have together. The parser itself has no bound."""

MAX_TRAILER_BYTES: Final = 65536
"""Bytes that a request may send behind its head without adding to its body."""

HEAD_SECONDS: Final = 10.0
"""Seconds that a request's head may take. A new connection has as long to begin one."""

BODY_SECONDS: Final = 10.0
"""The span of seconds over which the pace of a body is checked."""

MIN_BODY_BYTES: Final = 5000
"""Bytes of a body that must come within each span, unless the body ends."""

EVICTED_AT_ONCE: Final = 16
"""How many connections are ended at once to make room, so that not every new one has to search."""

YOUNG_SECONDS: Final = 0.25
"""A connection up to this age may have sent a request that the server just has not read yet."""

WARNING_SECONDS: Final = 60.0
"""Seconds between two log lines about connections that were ended for the same reason."""

PROBES: Final = ("/livez", "/readyz")

MAX_MESSAGE: Final = 200
"""Characters of the text about a wrong handshake, which repeats what the client has sent."""

LINGER_SECONDS: Final = 2.0
"""How long a refused client's bytes are still read, and thrown away."""


class _Response:
    """The transport of one response. It holds the head back until the body follows.

    Two writes would make two packets, and wake the client twice.
    """

    def __init__(self, cycle: RequestResponseCycle, loop: asyncio.AbstractEventLoop) -> None:
        self._cycle = cycle
        self._loop = loop
        self._transport = cycle.transport
        self._head = b""
        self._begun = False

    def write(self, data: bytes) -> None:
        """Write a part of the response, or a go-ahead [RFC 9110, section 15.2.1] before it."""
        if (
            not self._begun
            and self._cycle.response_started
            and self._cycle.scope["method"] != "HEAD"
        ):
            self._begun = True
            self._head = data
            # The body of a stream may come much later; then the head goes out in the loop's next
            # turn, by itself.
            self._loop.call_soon(self._flush)
        elif self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        else:
            self._transport.write(data)

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

    def close(self) -> None:
        """Close the connection once all is sent."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """Whether the connection is being closed."""
        return self._transport.is_closing()


class Connections:
    """The bound on a server's connections, and the log lines about connections that were ended.

    A ``limit`` of 0 means no bound.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._ended: dict[str, int] = {}
        self._silent_until: dict[str, float] = {}

    def ended(self, why: str) -> None:
        """Count a connection that was ended or refused."""
        self._ended[why] = self._ended.get(why, 0) + 1

    def lines(self, now: float) -> Iterator[str]:
        """The lines to log now: for each reason one in `WARNING_SECONDS`, with the count."""
        for why, count in [*self._ended.items()]:
            if now >= self._silent_until.get(why, -math.inf):
                self._silent_until[why] = now + WARNING_SECONDS
                del self._ended[why]
                yield f"{why}: {count} connection{'s' if count > 1 else ''} ended"


_TOO_MANY: Final = "the bound of connections is met (--max-connections)"
_TOO_SLOW: Final = "requests have come too slowly"

_HEAD, _BODY, _BUSY = "head", "body", "busy"


class _Refused(Exception):
    """Raised in a callback of the parser to stop it: the request is refused."""


class KernelkeepHTTPProtocol(HTTPProtocol):
    """One HTTP connection."""

    _refused = False
    _in_head = False
    _head_bytes = 0
    _problem = (400, "Bad Request", "bad_request")
    _linger: asyncio.TimerHandle | None = None

    _awaits = _HEAD  # what the client has to send, or _BUSY while the server answers
    _since = 0.0  # when that began (for a body, its present span), by the loop's clock
    _came = 0  # bytes of the body that have come in this span
    _trailer_bytes = 0  # bytes that have come since the body last grew, or since the head ended
    _trailer_lines = 0  # bytes of trailer fields
    _beyond_bound = False

    def __init__(self, *arguments: Any, bound: Connections | None = None, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._bound = bound or Connections()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._since = self.loop.time()
        limit = self._bound.limit
        if not limit or len(self.others) <= limit or self._make_room(YOUNG_SECONDS):
            return
        # There is some room beyond the bound, in which the head of a request is still read. It may
        # be a probe; or the request comes in one piece, and may then evict an idle connection.
        self._beyond_bound = True
        room = limit + max(1, limit // 2)
        if len(self.others) > room and not self._make_room(0.0):
            self._bound.ended(_TOO_MANY)
            self._refuse_too_many()
            self.send_400_response("")
            transport.close()

    def _make_room(self, age: float) -> bool:
        """End the idle connections of at least this age that have waited longest, if there are any.

        A request that comes in one piece, as nearly all do, is never ended by this.
        """
        latest = self.loop.time() - age
        idle = [
            other
            for other in self.others
            if isinstance(other, KernelkeepHTTPProtocol)
            and other is not self
            and other.is_idle
            and other._since <= latest
        ]
        chosen = heapq.nsmallest(EVICTED_AT_ONCE, idle, key=lambda other: other._since)
        for other in chosen:
            self._bound.ended(_TOO_MANY)
            # The connection counts as gone from now on, although `connection_lost` is called, and
            # its descriptor closed, only in the loop's next turn.
            self.others.discard(other)
            other.transport.abort()
        return bool(chosen)

    def check(self, now: float) -> None:
        """Refuse a request that comes too slowly; called about once a second."""
        waited = now - self._since
        if self._refused or self.transport.is_closing() or self._awaits == _BUSY:
            return
        if self._awaits == _HEAD:
            if waited > HEAD_SECONDS and self.is_idle:
                # No request is complete, so none is answered.
                self._bound.ended(_TOO_SLOW)
                self.transport.close()
        elif self.waits_for_application:
            self._begin(_BODY, now)
        elif waited > BODY_SECONDS:
            if self._came < MIN_BODY_BYTES:
                self._too_slow()
            else:
                self._begin(_BODY, now)

    def _begin(self, awaited: str, now: float | None = None) -> None:
        self._awaits = awaited
        self._since = self.loop.time() if now is None else now
        self._came = 0

    def _too_slow(self) -> None:
        self._bound.ended(_TOO_SLOW)
        self._problem = (408, "The request's body came too slowly", "request_timeout")
        self.send_400_response("")
        self.transport.close()

    def _refuse_too_many(self) -> None:
        self._problem = (503, "Too many connections", "too_many_connections")

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            self._take(data)

    def _take(self, data: bytes) -> None:
        # All bytes count as trailers until the parser finds that they are a head or a body:
        # `on_body` and `on_headers_complete` set the count back.
        self._trailer_bytes += len(data)
        super().data_received(data)
        if self._refused or self.transport.is_closing():
            return
        if self._awaits == _BUSY and self.is_idle and not self.is_timed:
            # An empty line before a request stops uvicorn's timer, but begins no request.
            self._begin(_HEAD)
        if self._awaits == _BODY and self._trailer_bytes > MAX_TRAILER_BYTES:
            self._too_large("trailers")
            self.log_refusal()
            self.send_400_response("")
            return
        # The bytes of an unfinished head are counted as they come, for it may never end.
        if self._in_head and not self._refused:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._too_large("target and headers")
                self.log_refusal()
                self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin(_HEAD)
        self._in_head = True
        self._head_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; a trailer field (behind the body) is dropped: no proxy has checked it."""
        if self._in_head:
            super().on_header(name, value)
            return
        self._trailer_lines += len(name) + len(value) + 4
        if self._trailer_lines > MAX_TRAILER_BYTES:
            self._too_large("trailers")
            raise _Refused

    def on_body(self, body: bytes) -> None:
        self._trailer_bytes = 0
        self._came += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._begin(_BUSY)
        super().on_message_complete()

    def on_response_complete(self) -> None:
        if self._awaits == _BUSY:
            self._begin(_BUSY)  # the connection is idle from now on
        super().on_response_complete()

    def on_headers_complete(self) -> None:
        """Check the head before the application sees it. `_Refused` becomes the error response."""
        self._in_head = False
        self._trailer_bytes = self._trailer_lines = 0
        self._begin(_BODY)
        # Each line has four bytes more: the colon, a space, and the line's end.
        lines = sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.url) + lines > MAX_HEAD_BYTES:
            self._too_large("target and headers")
            raise _Refused
        if self.http_version not in ("1.1", "1.0"):
            raise _Refused
        # The absolute form [RFC 9112, section 3.2.2] is for proxies, which this server is not, and
        # its host would have to be checked in place of the Host header. Fragments are never sent.
        if (self.url[:1] != b"/" and self.url != b"*") or b"#" in self.url:
            raise _Refused
        if self._beyond_bound:
            self._come_in()
        self.begin_answer(self._held_back)

    def _held_back(self, cycle: RequestResponseCycle) -> _Response:
        return _Response(cycle, self.loop)

    def _come_in(self) -> None:
        """Admit a request beyond the bound if it is a probe, or if idle connections make room."""
        path = self.url.partition(b"?")[0].decode("latin-1")
        if not self._make_room(0.0) and not path.endswith(PROBES):
            self._bound.ended(_TOO_MANY)
            self._refuse_too_many()
            raise _Refused
        self._beyond_bound = False

    def _too_large(self, what: str) -> None:
        message = f"The request's {what} have more than {MAX_HEAD_BYTES} bytes"
        self._problem = (431, message, "headers_too_large")

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer a request that was refused here or by the parser; a line was logged already."""
        self._refused = True
        answer = self.answer
        if answer is not None and answer.response_started and not answer.response_complete:
            self.transport.close()  # within another response this one would be part of its body
            return
        status, message, code = self._problem
        standard = {**STANDARD_HEADERS, "Connection": "close"}
        if status == 503:
            standard["Retry-After"] = "1"
        response = error_response(status, message, code, standard)
        phrase = http.HTTPStatus(status).phrase
        head = [f"HTTP/1.1 {status} {phrase}".encode()]
        headers = [*self.default_headers, *response.raw_headers]
        head += [name + b": " + value for name, value in headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))
        if not self.is_idle:
            self.transport.close()
            return
        # A close now would reset the connection of a client that still sends, and the client would
        # never see the answer. So only the sending half is closed first [RFC 9112, section 9.6].
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self._linger = self.loop.call_later(LINGER_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._linger is not None:
            self._linger.cancel()


class StrictWebSocketProtocol(KernelkeepWebSocketProtocol):
    """One WebSocket connection, whose handshake is refused as any other request is."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # What websockets and uvicorn refuse themselves gets its answer from this method.
        self.conn.reject = self._refusal  # type: ignore[method-assign]

    def _refusal(self, status: StatusLike, text: str) -> Response:
        status = http.HTTPStatus(status)
        error = self.conn.handshake_exc
        more = {}
        if isinstance(error, InvalidHeader) and error.name == "Sec-WebSocket-Version":
            status = http.HTTPStatus.UPGRADE_REQUIRED  # RFC 6455, section 4.4
            more = {"Sec-WebSocket-Version": "13"}
        message = text.strip()[:MAX_MESSAGE] or status.phrase
        headers = {**STANDARD_HEADERS, **more, "Connection": "close"}
        answer = error_response(status, message, code_of(status), headers)
        own = [*self.default_headers, *answer.raw_headers]
        fields = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in own]
        return Response(status, status.phrase, Headers(fields), bytes(answer.body))
