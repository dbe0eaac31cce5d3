"""A service over HTTP that answers what a test wants, byte by byte, or not at all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, Self

__all__ = ["LoginAttempt", "Service", "answer"]


class LoginAttempt(NamedTuple):
    """A request that has arrived; the names of headers are in lower case."""

    path: str
    headers: Mapping[str, str]
    body: str = ""


def answer(
    content: Any = b"", status: int = 200, *, length: int | None = None, **headers: str
) -> bytes:
    """A whole response: bytes as they are, anything else as JSON."""
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = [
        f"HTTP/1.1 {status} Whatever",
        f"Content-Length: {len(body) if length is None else length}",
    ]
    head += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*head, "", ""]).encode() + body


class Service:
    """An asynchronous context manager: a server on a free port of 127.0.0.1.

    ``answers`` has for each path the bytes to send, or a function that returns them, perhaps a
    coroutine; a path that is missing gets 404. What was asked is in ``asked``.
    """

    def __init__(self) -> None:
        self.answers: dict[str, bytes | Callable[[LoginAttempt], bytes | Awaitable[bytes]]] = {}
        self.asked: list[LoginAttempt] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, at the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Refuse connections, and end those that there are."""
        assert self._server is not None
        self._server.close()
        for writer in self._connections:
            writer.transport.abort()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            first, *lines = head.strip().split("\r\n")
            headers = {
                name.lower(): value for name, value in (line.split(": ", 1) for line in lines)
            }
            body = await reader.readexactly(int(headers.get("content-length", 0)))
            asked = LoginAttempt(first.split(" ")[1], headers, body.decode())
            self.asked.append(asked)
            found = self.answers.get(asked.path, answer(status=404))
            content = found if isinstance(found, bytes) else found(asked)
            writer.write(content if isinstance(content, bytes) else await content)
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass  # the other side has given up
        finally:
            writer.close()
            self._connections.discard(writer)
