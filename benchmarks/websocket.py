"""A WebSocket client that costs a fraction of what any server costs.

Blocking sockets, one buffer, and a look at the first bytes of each frame: whether it is a stream
message, which is counted, or another small one, which is kept. Its frames are masked with zeros, so
nothing is copied for it.
"""

from __future__ import annotations

import base64
import json
import os
import socket
import time
from collections.abc import Sequence
from struct import pack, unpack_from
from typing import Any, Final
from uuid import uuid4

__all__ = ["V1", "Closed", "WebSocket", "request_frame"]

V1: Final = "v1.kernel.websocket.jupyter.org"

BUFFER_BYTES: Final = 2**20
LOOK_BYTES: Final = 1024
"""A stream message shows itself within so many bytes of its frame."""


class Closed(ConnectionError):
    """The server has closed the connection, or is gone."""


class WebSocket:
    """One connection to a kernel's channels, or to whatever is at ``path``.

    ``session`` is that of its requests: some servers want it to be the one in the path.
    """

    def __init__(
        self,
        port: int,
        path: str,
        headers: Sequence[str] = (),
        *,
        v1: bool,
        session: str = "benchmark",
    ) -> None:
        self.is_v1 = v1
        self.streams = 0  # stream messages so far
        self.others: list[bytes] = []  # small frames that are no stream messages
        self.delays: list[float] | None = None  # seconds on the way, of messages that tell
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._buffer = bytearray(BUFFER_BYTES)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._skip = 0  # bytes still to come of a frame that is passed over
        self._skips_stream = False  # whether that is a stream message: it counts when it is whole
        self._session = session
        self._handshake(port, path, headers)

    def _handshake(self, port: int, path: str, headers: Sequence[str]) -> None:
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: 127.0.0.1:{port}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            *headers,
            *([f"Sec-WebSocket-Protocol: {V1}"] if self.is_v1 else []),
        ]
        self.socket.sendall("\r\n".join([*lines, "", ""]).encode())
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.socket.recv(65536)
            if not data:
                raise Closed("the connection was closed in the handshake")
            head += data
        head, _, rest = head.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101"):
            raise Closed(head.split(b"\r\n", 1)[0].decode())
        self._buffer[: len(rest)] = rest
        self._filled = len(rest)
        self._parse()

    def close(self) -> None:
        """Close at once."""
        self.socket.close()

    def execute(self, code: str) -> str:
        """Send an ``execute_request``; its id."""
        msg_id = uuid4().hex
        self.socket.sendall(request_frame(msg_id, self._session, code, v1=self.is_v1))
        return msg_id

    def receive(self, timeout: float | None = None) -> bool:
        """Take what has arrived; False if nothing has for ``timeout`` seconds.

        Raises `Closed` when the connection has ended.
        """
        self.socket.settimeout(timeout)
        try:
            count = self.socket.recv_into(self._view[self._filled :])
        except TimeoutError:
            return False
        except OSError as error:
            raise Closed(str(error)) from None
        if not count:
            raise Closed("the server closed the connection")
        self._filled += count
        self._parse()
        return True

    def _parse(self) -> None:
        """Go over the frames in the buffer; keep what is not complete."""
        buffer, filled, position = self._buffer, self._filled, 0
        streams = 0
        while True:
            if self._skip:
                step = min(self._skip, filled - position)
                position += step
                self._skip -= step
                if not self._skip and self._skips_stream:
                    streams += 1
                    self._skips_stream = False
            if filled - position < 10 and not _has_header(buffer, position, filled):
                break
            length, start = buffer[position + 1], position + 2
            if length == 126:
                (length,) = unpack_from("!H", buffer, start)
                start += 2
            elif length == 127:
                (length,) = unpack_from("!Q", buffer, start)
                start += 8
            end = start + length
            if end > filled and filled - start < LOOK_BYTES:
                break  # not enough of it is here to tell what it is
            if buffer.find(b'"stream"', start, start + LOOK_BYTES if end > filled else end) >= 0:
                if end > filled:
                    self._skips_stream = True
                else:
                    streams += 1
                if self.delays is not None:
                    at = buffer.find(b"@", start, end)
                    sent = float(buffer[at + 1 : buffer.index(b" ", at)])
                    self.delays.append(time.monotonic() - sent)
            elif end <= filled:
                self._other(buffer[position], bytes(buffer[start:end]))
            if end > filled:
                self._skip = end - filled
                position = filled
            else:
                position = end
        self.streams += streams
        self._filled = filled - position
        if position and self._filled:
            self._buffer[: self._filled] = buffer[position:filled]

    def _other(self, first: int, payload: bytes) -> None:
        opcode = first & 0x0F
        if opcode == 0x9:
            self.socket.sendall(_masked(0x8A, payload))
        elif opcode == 0x8:
            raise Closed(
                f"the server closed the connection: {payload[2:].decode(errors='replace')}"
            )
        elif opcode in (0x1, 0x2):
            self.others.append(payload)


def _has_header(buffer: bytearray, position: int, filled: int) -> bool:
    """Whether the header of a frame is here, when there are fewer than ten bytes."""
    have = filled - position
    if have < 2:
        return False
    length = buffer[position + 1]
    return have >= (2 if length < 126 else 4 if length == 126 else 10)


def _masked(first: int, payload: bytes) -> bytes:
    length = len(payload)
    if length < 126:
        return bytes((first, 0x80 | length)) + bytes(4) + payload
    if length < 65536:
        return pack("!BBH", first, 0xFE, length) + bytes(4) + payload
    return pack("!BBQ", first, 0xFF, length) + bytes(4) + payload


def request_frame(msg_id: str, session: str, code: str, *, v1: bool) -> bytes:
    """An ``execute_request`` as a WebSocket frame of either framing."""
    header: dict[str, Any] = {
        "msg_id": msg_id,
        "msg_type": "execute_request",
        "session": session,
        "username": "benchmark",
        "date": "2026-01-01T00:00:00.000000Z",
        "version": "5.3",
    }
    content = {"code": code, "silent": False, "store_history": False, "allow_stdin": False}
    if not v1:
        envelope = {
            "channel": "shell",
            "header": header,
            "parent_header": {},
            "metadata": {},
            "content": content,
            "buffers": [],
        }
        return _masked(0x81, json.dumps(envelope).encode())
    parts = [b"shell", json.dumps(header).encode(), b"{}", b"{}", json.dumps(content).encode()]
    offset = 8 * 7
    offsets = [offset]
    for part in parts:
        offset += len(part)
        offsets.append(offset)
    return _masked(0x82, pack("<7Q", 6, *offsets) + b"".join(parts))
