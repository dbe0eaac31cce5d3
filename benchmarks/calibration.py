"""How fast the client is alone: what no server can be seen to pass."""

from __future__ import annotations

import base64
import hashlib
import multiprocessing
import socket
import time
import timeit
from struct import pack
from typing import Final

from benchmarks.websocket import WebSocket

__all__ = ["calibrate", "turn"]

MESSAGES: Final = 300_000
_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, section 1.3


def turn() -> float:
    """Nanoseconds that a turn of a small loop takes: how fast this Python is on this machine.

    The same version takes twice as long when it was built without optimisation.
    """
    turns = 10_000
    best = min(timeit.repeat(f"for i in range({turns}): i * 2 + 1", number=5, repeat=10))
    return best / 5 / turns * 1e9


def calibrate(messages: int = MESSAGES) -> float:
    """Messages of 100 B a second that the client reads of a server that does nothing else."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    process = multiprocessing.get_context("fork").Process(target=_serve, args=(listener, messages))
    process.start()
    try:
        connection = WebSocket(port, "/", v1=True)
        while connection.streams == 0:
            connection.receive(10)
        began, first = time.perf_counter(), connection.streams
        while connection.streams < messages and connection.receive(10):
            pass
        seconds = time.perf_counter() - began
        connection.close()
        return (connection.streams - first) / seconds
    finally:
        listener.close()
        process.join(10)


def _serve(listener: socket.socket, messages: int) -> None:
    """Accept one WebSocket, and write the same batch of frames over and over."""
    connection, _ = listener.accept()
    head = b""
    while b"\r\n\r\n" not in head:
        head += connection.recv(65536)
    key = head.lower().partition(b"sec-websocket-key: ")[2].split(b"\r\n")[0]
    start = head.lower().index(key)
    key = head[start : start + len(key)]
    accept = base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())
    connection.sendall(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )
    # As long as a message of 100 B is in the v1 framing.
    payload = (b'{"msg_type": "stream"}' + b"x" * 600)[:600]
    batch = (pack("!BBH", 0x82, 126, len(payload)) + payload) * 100
    for _ in range(messages // 100):
        connection.sendall(batch)
    connection.close()
