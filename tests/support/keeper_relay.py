"""A relay at the keeper's socket: what passes can be looked at, held, or lost with the connection.

The keeper behind it is a real one, and so is the server. It is for the moments that no signal from
outside can hit: between a launch and its answer, for one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from app.keeper.protocol import Fields, keeper_dir, pack, receive

__all__ = ["Cut", "Relay"]

Side = Literal["before", "after"]

Step = Callable[[Side, str], Awaitable[None]]

Bells = Callable[[bytes], bytes]


async def _pass(_side: Side, _ask: str) -> None:
    pass


class Cut(Exception):
    """Raised by a step: the connection ends here, and what was to pass is lost."""


class Relay:
    """Within, servers that connect to a keeper which runs come through here.

    ``step`` is awaited with each request before the keeper gets it, and with its answer before the
    server does. A keeper that is started anew is met directly. ``bells`` makes of each doorbell
    what the server gets.
    """

    def __init__(self, state_dir: Path, step: Step = _pass, bells: Bells = bytes) -> None:
        self._socket = keeper_dir(state_dir) / "socket"
        self._behind = keeper_dir(state_dir) / "behind"
        self._step = step
        self._bells = bells
        self.connections = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        os.rename(self._socket, self._behind)
        self._server = await asyncio.start_unix_server(self._serve, self._socket)
        self._socket.chmod(0o600)
        self._own = self._socket.lstat()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(self._socket.lstat(), self._own):  # not that of a new keeper
                os.rename(self._behind, self._socket)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        asked: dict[object, str] = {}
        try:
            keeper, to_keeper = await asyncio.open_unix_connection(self._behind)
        except ConnectionRefusedError:  # it was killed, and this is what it left
            self._tasks.discard(task)
            writer.transport.abort()
            return

        async def requests() -> None:
            while True:
                fields, data = await receive(reader)
                if "ask" in fields:  # rather than a message for or of a kernel
                    asked[fields.get("id")] = fields["ask"]
                    await self._step("before", fields["ask"])
                to_keeper.write(pack(fields, data))

        async def answers() -> None:
            while True:
                fields, data = await receive(keeper)
                data = data if fields else self._bells(data)
                await self._look(fields, asked)
                writer.write(pack(fields, data))

        pumps = {asyncio.ensure_future(requests()), asyncio.ensure_future(answers())}
        try:
            done, _ = await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            for pump in done:
                with contextlib.suppress(OSError, asyncio.IncompleteReadError, Cut):
                    pump.result()
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            for end in (writer, to_keeper):
                end.transport.abort()
            self._tasks.discard(task)

    async def _look(self, fields: Fields, asked: dict[object, str]) -> None:
        ask = asked.pop(fields.get("id"), None)
        if ask is not None:
            await self._step("after", ask)
