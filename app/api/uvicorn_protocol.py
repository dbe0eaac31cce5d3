"""uvicorn's HTTP protocol, stricter: what it would pass on although it makes no sense is refused.

Nothing that is refused here reaches the application. The answer is an error body as any other, and
the connection is closed.
"""

from __future__ import annotations

import asyncio
import http
from typing import Final, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from app.api.errors import STANDARD_HEADERS, error_response

__all__ = ["MAX_HEAD_BYTES", "KernelkeepHTTPProtocol"]

MAX_HEAD_BYTES: Final = 65536
"""Of a request's target and headers together. The parser itself has no bound."""

LINGER_SECONDS: Final = 2.0
"""How long what a refused client still sends is read, and thrown away."""


class _Response:
    """What one response is written to: its head waits for the body that follows at once.

    In two writes they would be two packets, and their client would be woken twice.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
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
            # A stream may take its time.
            asyncio.get_running_loop().call_soon(self._flush)
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


class _Refused(Exception):
    """A request that the parser shall not go on with."""


class KernelkeepHTTPProtocol(HttpToolsProtocol):
    """One connection."""

    _refused = False
    _in_head = False
    _head_bytes = 0
    _problem = (400, "Bad Request", "bad_request")

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        # A head that has not ended is counted as it comes: it may never end.
        if self._in_head and not self._refused:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._too_large()
                self.logger.warning("Invalid HTTP request received.")
                self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._head_bytes = 0

    def on_headers_complete(self) -> None:
        """Look at the head before anybody acts on it; what is raised becomes the answer."""
        self._in_head = False
        # Four more of each line: the colon, a space, the line's end.
        lines = sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.url) + lines > MAX_HEAD_BYTES:
            self._too_large()
            raise _Refused
        if self.parser.get_http_version() not in ("1.1", "1.0"):
            raise _Refused
        # Not the absolute form [RFC 9112, section 3.2.2]: we are no proxy, and a host in the target
        # would have to be checked in the place of the Host header's. No fragment either.
        if (self.url[:1] != b"/" and self.url != b"*") or b"#" in self.url:
            raise _Refused
        before: RequestResponseCycle | None = self.cycle
        super().on_headers_complete()
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and cycle is not before:  # no WebSocket
            cycle.transport = cast("asyncio.Transport", _Response(cycle))

    def _too_large(self) -> None:
        message = f"The request's target and headers have more than {MAX_HEAD_BYTES} bytes"
        self._problem = (431, message, "headers_too_large")

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002
        """Answer what is refused, here or by the parser; uvicorn has logged a line about it."""
        self._refused = True
        status, message, code = self._problem
        standard = {**STANDARD_HEADERS, "Connection": "close"}
        response = error_response(status, message, code, standard)
        phrase = http.HTTPStatus(status).phrase
        head = [f"HTTP/1.1 {status} {phrase}".encode()]
        headers = [*self.server_state.default_headers, *response.raw_headers]
        head += [name + b": " + value for name, value in headers]
        self.transport.write(b"\r\n".join([*head, b"", bytes(response.body)]))
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is not None and not cycle.response_complete:
            self.transport.close()
            return
        # A client that is still sending would be reset by a close, and never see the answer
        # [RFC 9112, section 9.6].
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.close)
