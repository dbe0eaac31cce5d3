"""Thousands of inputs that are nearly HTTP/1.1, or WebSocket frames: none gets a 500 or a
traceback, and none leaves anything behind. Each run makes up others."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.support.processes import eventually_sync, resident_memory, usage
from tests.support.server import ServerProcess

INPUTS = 20  # in an example; what hypothesis does for one costs more than an input

PIECES = [
    *(b"GET ", b"POST ", b"PATCH ", b"/api", b"/api/kernels", b"/livez", b"/?token=x", b"%2f"),
    *(b" HTTP/1.1\r\n", b" HTTP/1.0\r\n", b" HTTP/2.0\r\n", b"Host: 127.0.0.1\r\n", b"Host: [::1"),
    *(
        b"\r\n",
        b"\r\n\r\n",
        b"\n",
        b"\r",
        b" ",
        b":",
        b"\0",
        b"\xff",
        b"?",
        b"#",
        b"//",
        b"%",
        b"%00",
    ),
    *(b"Origin: http://[::1\r\n", b"Origin: null\r\n", b"Transfer-Encoding: chunked\r\n", b"{}"),
    *(b"Content-Length: 2\r\n", b"Content-Length: -1\r\n", b"0\r\n", b"2\r\n{}\r\n", b"X: y\r\n"),
    *(b"Expect: 100-continue\r\n", b"Authorization: token x\r\n", b"Upgrade: websocket\r\n"),
    *(b"Connection: Upgrade\r\n", b"Connection: close\r\n", b"Sec-WebSocket-Version: 13\r\n"),
    *(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n", b"X-Forwarded-For: [::\r\n"),
    *(b"Sec-Fetch-Site: cross-site\r\n", b"X-Request-Id: \x7f\r\n", b"/api/events/subscribe"),
]
PIECE = st.sampled_from(PIECES)
REQUESTS = [
    b"GET /api HTTP/1.1\r\nHost: 127.0.0.1\r\n",
    b"POST /api/kernels HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n",
    b"GET /api/%6bernels HTTP/1.1\r\nHost: ",
    b"",
]
HTTP = st.builds(
    lambda start, pieces: start + b"".join(pieces),
    st.sampled_from(REQUESTS),
    st.lists(PIECE | st.binary(max_size=6), max_size=8),
)
FRAMES = st.binary(max_size=40) | st.builds(
    lambda first, length, rest: bytes((first, length)) + rest,
    st.sampled_from([0x00, 0x01, 0x02, 0x80, 0x81, 0x82, 0x88, 0x89, 0x8A, 0xC1, 0x83, 0x09]),
    st.sampled_from([0x80, 0x81, 0x84, 0xFD, 0xFE, 0xFF, 0x00, 0x7F]),
    st.binary(max_size=24),
)


def _exchange(server: ServerProcess, data: bytes, opening: bytes = b"") -> bytes:
    """What is answered to some bytes after which the client sends no more."""
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), 20) as connection:
        try:
            if opening:
                connection.sendall(opening)
                answer = connection.recv(65536)
                assert b" 101 " in answer
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while received := connection.recv(65536):
                answer += received
        except ConnectionError:
            pass
    return answer


class _Watch:
    """What a server may not do while it is fuzzed."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        for _ in range(50):  # what is loaded once is no growth
            _exchange(server, b"GET /api HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        self._mark = server.mark()
        self._memory = resident_memory(server.pid)
        self._descriptors = usage(server.pid).descriptors

    def answered(self, answer: bytes) -> None:
        assert not re.search(rb"HTTP/1\.1 50[0-24-9]", answer), answer

    def ended(self) -> None:
        server = self._server
        assert b" 200 " in _exchange(server, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n")
        log = server.output(self._mark)
        assert "Traceback" not in log
        assert '" 500' not in log
        assert "ERROR" not in log
        assert eventually_sync(lambda: usage(server.pid).descriptors <= self._descriptors + 2, 30)
        assert resident_memory(server.pid) < self._memory + 20 * 2**20


def _fuzz(
    server: ServerProcess, count: int, inputs: st.SearchStrategy[bytes], opening: bytes = b""
) -> None:
    watch = _Watch(server)

    @settings(
        max_examples=count // INPUTS,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(inputs, min_size=INPUTS, max_size=INPUTS))
    def each(batch: Sequence[bytes]) -> None:
        for data in batch:
            watch.answered(_exchange(server, data, opening))

    each()
    watch.ended()


@pytest.fixture
def count(full: bool) -> int:
    """How many inputs there are."""
    return 5000 if full else 1000


def test_bytes_that_are_nearly_http(server: ServerProcess, count: int) -> None:
    _fuzz(server, count, HTTP)


def test_bytes_that_are_nearly_frames(
    server: ServerProcess, count: int, shared_kernel: str
) -> None:
    path = f"/api/kernels/{shared_kernel}/channels?token={server.token}"
    opening = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()
    _fuzz(server, count, st.lists(FRAMES, max_size=4).map(b"".join), opening)
