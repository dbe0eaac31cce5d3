"""A proxy that cuts connections, as some do that stand before servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

CHUNK = 65536


class CuttingProxy:
    """Passes bytes on to a port of 127.0.0.1.

    A connection whose first request is for a path that ends in ``suffix`` is reset after
    ``seconds``; ``cuts`` counts them.
    """

    def __init__(self, target: int, suffix: str, seconds: float) -> None:
        self.cuts = 0
        self.port = 0
        self._target = target
        self._suffix = f"{suffix} HTTP/1.1".encode()
        self._seconds = seconds
        self._connections: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[CuttingProxy]:
        """Listens within; ``port`` is known then."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        beyond, back = await asyncio.open_connection("127.0.0.1", self._target)
        try:
            request = await reader.readline()
            back.write(request)
            both = asyncio.gather(_pass(reader, back), _pass(beyond, writer))
            is_cut = request.rstrip().endswith(self._suffix)
            try:
                await asyncio.wait_for(both, self._seconds if is_cut else None)
            except TimeoutError:
                self.cuts += 1
        finally:
            for side in (writer, back):
                side.transport.abort()


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
