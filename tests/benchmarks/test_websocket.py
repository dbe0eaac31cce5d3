"""The benchmark's WebSocket client: what it counts."""

from __future__ import annotations

import base64
import hashlib
import socket
import threading
from struct import pack
from typing import Final

from benchmarks.websocket import WebSocket

GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


def test_a_large_message_counts_when_all_of_it_has_come() -> None:
    text = b'{"msg_type": "stream"}'.ljust(3_000_000, b"x")
    frame = pack("!BBQ", 0x82, 127, len(text)) + text
    goes_on = threading.Event()
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        accepted, _ = listener.accept()
        with accepted:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += accepted.recv(65536)
            (line,) = (
                each for each in head.split(b"\r\n") if each.startswith(b"Sec-WebSocket-Key")
            )
            key = line.split(b": ")[1]
            accept = base64.b64encode(hashlib.sha1(key + GUID, usedforsecurity=False).digest())
            lines = [b"HTTP/1.1 101 Switching Protocols", b"Sec-WebSocket-Accept: " + accept]
            accepted.sendall(b"\r\n".join([*lines, b"", b""]))
            accepted.sendall(frame[:-1000])
            goes_on.wait(10)
            accepted.sendall(frame[-1000:] + frame)

    server = threading.Thread(target=serve)
    server.start()
    connection = WebSocket(listener.getsockname()[1], "/", v1=True)
    try:
        while connection.receive(0.5):
            pass
        assert connection.streams == 0
        goes_on.set()
        while connection.streams < 2 and connection.receive(5):
            pass
        assert connection.streams == 2
    finally:
        goes_on.set()
        connection.close()
        server.join(10)
        listener.close()
