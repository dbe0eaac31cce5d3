"""A cable between keepers and their service that can be pulled, without root and without a word."""

from __future__ import annotations

import asyncio
import contextlib


class Cable:
    """Passes bytes on to the port ``target`` here, until it is pulled: then it keeps them."""

    def __init__(self, target: int) -> None:
        self.port = 0
        self.target = target
        self._whole = asyncio.Event()
        self._whole.set()
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; ``port`` is known then."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def pull(self) -> None:
        """Nothing passes, and nobody is told."""
        self._whole.clear()

    def plug(self) -> None:
        """It does again, and so does what was on its way."""
        self._whole.set()

    async def close(self) -> None:
        assert self._server is not None
        self._server.close()
        for each in [*self._connections]:
            each.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        sides = [writer]
        try:
            await self._whole.wait()
            beyond, back = await asyncio.open_connection("127.0.0.1", self.target)
            sides.append(back)
            await asyncio.gather(self._pass(reader, back), self._pass(beyond, writer))
        except OSError:
            pass  # who dials through this dials again
        finally:
            for side in sides:
                side.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            await self._whole.wait()
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
