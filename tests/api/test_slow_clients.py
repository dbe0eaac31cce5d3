"""Clients that take their time: a request that is never all there holds nothing for long."""

from __future__ import annotations

import asyncio
import socket
import time

import pytest

from app.api.uvicorn_protocol import BODY_SECONDS, HEAD_SECONDS
from tests.conftest import MakeServer
from tests.support.rest import RestClient
from tests.support.server import ServerProcess
from tests.support.siege import CrampedServer, Siege

HOST = b"Host: 127.0.0.1\r\n"


@pytest.fixture(scope="module")
def server(own_server: ServerProcess) -> ServerProcess:
    """It logs a slow client once in a while only."""
    return own_server


def _ended(server: ServerProcess, data: bytes, more: bytes = b"") -> tuple[float, bytes]:
    """After how many seconds a connection ends, and what was answered; ``more`` each second."""
    began = time.monotonic()
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), 1) as connection:
        connection.sendall(data)
        while time.monotonic() < began + 40:
            try:
                received = connection.recv(4096)
            except TimeoutError:
                if more:
                    connection.sendall(more)
                continue
            except ConnectionError:
                break
            if not received:
                break
            answer += received
    return time.monotonic() - began, answer


async def test_what_is_too_slow_is_ended(server: ServerProcess, rest: RestClient) -> None:
    token = f"Authorization: token {server.token}\r\n".encode()
    body = b"POST /api/kernels HTTP/1.1\r\n" + HOST + token + b"Content-Length: 9999\r\n\r\n"
    stranger = body.replace(token, b"")
    found = await asyncio.gather(
        asyncio.to_thread(_ended, server, b""),
        asyncio.to_thread(_ended, server, b"\r\n"),
        asyncio.to_thread(_ended, server, b"GET /api HTTP/1.1\r\n" + HOST + b"X: ", b"x"),
        asyncio.to_thread(_ended, server, body, b"x"),
        asyncio.to_thread(_ended, server, stranger, b"x"),
        asyncio.to_thread(_ended, server, b"GET /api HTTP/1.1\r\n" + HOST + b"\r\n", b"\r\n"),
    )
    seconds = [each for each, _ in found]
    assert min(seconds) > min(HEAD_SECONDS, BODY_SECONDS) - 1
    assert max(seconds) < 30
    assert [answer[9:12] for _, answer in found] == [b"", b"", b"", b"408", b"403", b"200"]
    assert b"request_timeout" in found[3][1]
    lines = [line for line in server.output().splitlines() if "too slowly" in line]
    assert len(lines) == 1
    assert await rest.kernels() == []


async def test_a_bound_of_connections_makes_way_for_requests(make_server: MakeServer) -> None:
    server = make_server("--max-connections", "20")
    idle = []
    try:
        for _ in range(100):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /api HTTP/1.1\r\n")
            idle.append((reader, writer))
        async with RestClient(server.url, server.token) as rest:
            await rest.request("GET", "/api/kernels")
            await rest.request("GET", "/livez")
    finally:
        for _, writer in idle:
            writer.transport.abort()
    lines = [line for line in server.output().splitlines() if "bound of connections" in line]
    assert len(lines) <= 1


async def test_where_all_are_at_work_only_probes_come_in(make_server: MakeServer) -> None:
    server = make_server("--max-connections", "3")
    token = f"Authorization: token {server.token}\r\n".encode()
    upgrade = (
        b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    working = []
    try:
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET /api/events/subscribe HTTP/1.1\r\n" + HOST + token + upgrade)
            assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
            working.append(writer)
        _, answer = await asyncio.to_thread(
            _ended, server, b"GET /api HTTP/1.1\r\n" + HOST + b"\r\n"
        )
        assert b" 503 " in answer
        assert b"too_many_connections" in answer
        assert b"Retry-After".lower() in answer.lower()
        async with RestClient(server.url, None) as stranger:
            await stranger.request("GET", "/livez")
    finally:
        for writer in working:
            writer.transport.abort()


async def test_a_siege_is_held(make_server: MakeServer) -> None:
    """The short form of ``python -m tests.support.siege``."""
    server = make_server(kind=CrampedServer)
    found = await Siege(server, heads=700, bodies=50, floods=10).hold(5)
    assert found.failures == []
    assert max(*found.livez, *found.executions) < 5, found  # a second, on a machine of its own
    assert found.memory_peak < found.memory_before + 100 * 2**20, found
    assert 0 <= found.recovered_after < 30, found
