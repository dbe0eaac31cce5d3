"""Connections of strangers, which have not shown yet who dials: a bound on their number, and a
bound on the lines that are logged about those that are refused.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

__all__ = ["Accepting"]

logger = logging.getLogger(__name__)

STRANGERS: Final = 256
"""How many connections of strangers there may be at a time."""

ACCEPT_SECONDS: Final = 1.0
"""The pause after a connection could not be accepted, as when no descriptors are left."""

LOGGED_SECONDS: Final = 1.0
"""The least time between two log lines about strangers; the strangers between are counted."""


class Accepting:
    """Takes connections on ``server``, which listens, and awaits ``receive`` with each.

    ``receive`` gets the connection and its address. It finds out who has dialled in, within a bound
    of its own, and closes the connection; until it returns, the connection counts as a stranger's.
    ``whose`` is the name, for the log, of those who are to dial in. Make it in a running event
    loop, and `close` it there.
    """

    def __init__(
        self,
        server: socket.socket,
        receive: Callable[[socket.socket, Any], Awaitable[None]],
        whose: str,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._server = server
        self._receive = receive
        self._whose = whose
        self.strangers: set[asyncio.Future[None]] = set()
        """The tasks that receive strangers."""
        self._logged_at = -LOGGED_SECONDS
        self._unlogged = 0
        self._accepting = self._loop.create_task(self._accept(), name=f"{whose} that dial in")

    async def close(self) -> None:
        """Listen no more; connections of strangers are cut off."""
        # No stranger is added after this: `_accept` is cancelled in the same turn of the loop.
        tasks = {self._accepting, *self.strangers}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._server.close()

    async def _accept(self) -> None:
        while True:
            try:
                connection, address = await self._loop.sock_accept(self._server)
            except OSError as error:
                logger.warning("a connection of %s failed: %s", self._whose, error)
                await asyncio.sleep(ACCEPT_SECONDS)
                continue
            # Too many are closed, and not left in the backlog, where they would take the room of
            # connections that come later. The strangers that are being received are gone soon.
            if len(self.strangers) >= STRANGERS:
                connection.close()
                self.log(address, "too many others are being looked at")
                continue
            task = asyncio.ensure_future(self._receive(connection, address))
            self.strangers.add(task)
            task.add_done_callback(self.strangers.discard)

    def log(self, address: Any, why: str) -> None:
        """Log why a stranger was refused; a flood of them leaves one line in `LOGGED_SECONDS`."""
        now = self._loop.time()
        if now - self._logged_at < LOGGED_SECONDS:
            self._unlogged += 1
            return
        more = f" (and {self._unlogged} others)" if self._unlogged else ""
        self._logged_at, self._unlogged = now, 0
        host = address[0] if isinstance(address, tuple) else address
        logger.warning("whoever dialled in from %s was refused: %s%s", host, why, more)
