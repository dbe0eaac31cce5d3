"""The line to who hears a kernel: requests go there, and it tells how far the kernel's log goes.

That is the keeper (`app.managers.processes.keeper.client`).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from ...keeper.hearings import Heard
from ...protocol import records
from ...protocol.link import Bell
from ...protocol.messages import ClientMessage, Message
from ..errors import KeeperUnavailable

__all__ = ["Hearer", "Line", "LineOwner"]

logger = logging.getLogger(__name__)

WINDOW: Final = 256
WINDOW_BYTES: Final = 2**23
"""Requests, and their bytes, that may be on their way to a kernel that takes none. The next ones
wait here, where their senders can be held back. What does not go to the shell channel has as much
again: an interrupt does not wait behind code that nobody takes."""

SETTLE_SECONDS: Final = 10.0
"""How long the last messages of a process that has ended may take to arrive while there are more of
them; when there are none at three looks in a row, all have arrived."""

STDIN_SECONDS: Final = 0.5
"""How much longer than the other channels stdin may take to be connected."""

PAUSE_SECONDS: Final = 0.002


class LineOwner(Protocol):
    """Who speaks over a line. Its methods must not block and must not raise."""

    def on_bell(self, bell: Bell) -> None:
        """The log goes so far."""

    def on_writable(self) -> None:
        """More requests can be sent."""

    def on_heard(self, heard: Heard) -> None:
        """The kernel is heard from now on, or is by another keeper."""

    def on_malformed(self, count: int, channel: str, reason: str) -> None:
        """So many messages of the kernel's were dropped by now, the last for this reason."""


class Hearer(Protocol):
    """Who hears kernels."""

    async def hear(
        self, line: Line, directory: Path, info: Mapping[str, Any] | None, *, anew: bool
    ) -> Heard:
        """Open a kernel's log, and sockets to its process if there is ``info``.

        ``anew``: the process was just launched. Raises `KernelUnreachable` or `KeeperUnavailable`.
        """

    def request(self, line: Line, message: ClientMessage, owner: str) -> None:
        """Send a request of the session ``owner`` to the kernel."""

    def say(self, line: Line, message: Message, owner: str | None, flags: int) -> None:
        """Append a message of the server's own making to the log."""

    async def settle(self, kernel_id: str) -> bool:
        """Have what has arrived in the log, and tell of it; whether there was anything."""

    async def stdin_connected(self, kernel_id: str) -> bool:
        """Whether input requests can arrive."""

    def opened(self, kernel_id: str) -> None:
        """The kernel is taken for ready."""

    async def disconnect(self, kernel_id: str) -> None:
        """The kernel's process has ended; its log goes on. All that it has said is told of."""

    def renew(self, kernel_id: str) -> None:
        """The newest file of the log cannot be read: it is to go on in another."""

    def drop(self, kernel_id: str) -> None:
        """The kernel is gone, and its log goes with it."""


class Line:
    """Of one kernel, for its whole life. ``epoch`` is for a log that is new."""

    def __init__(
        self, hearer: Hearer, kernel_id: str, session: str, epoch: str, owner: LineOwner
    ) -> None:
        self.kernel_id = kernel_id
        self.session = session
        self.epoch = epoch
        self.handle = 0
        self.connected = False
        """Whether there is a process that is heard."""
        # For another keeper, if this one is lost.
        self.directory = Path()
        self.info: dict[str, Any] | None = None
        # How far the log goes, whoever has told it: nothing gets these numbers once more.
        self.known = (1, 0)
        # Answers to prompts for which there was nobody who would take them.
        self.unsent: list[tuple[ClientMessage, str]] = []
        self._hearer = hearer
        self._owner = owner
        self._taken = 0
        self._on_their_way: deque[int] = deque()  # the sizes of requests
        self._bytes = 0

    async def hear(
        self, directory: Path, info: Mapping[str, Any] | None, *, anew: bool = False
    ) -> Heard:
        """Have the log opened, and a process heard. Raises what `Hearer.hear` does."""
        return await self._hearer.hear(self, directory, info, anew=anew)

    def remember(self, directory: Path, info: dict[str, Any] | None) -> None:
        """This is what is heard."""
        self.directory = directory
        self.info = info if info is not None else self.info

    def send(self, message: ClientMessage, owner: str) -> bool:
        """Send a request; False if no more are taken for now. ``on_writable`` tells when."""
        way = self._on_their_way
        times = 1 if message.channel == "shell" else 2
        is_full = len(way) >= times * WINDOW
        if way and (is_full or self._bytes + message.size > times * WINDOW_BYTES):
            return False
        way.append(message.size)
        self._bytes += message.size
        self._hearer.request(self, message, owner)
        return True

    def say(self, message: Message, owner: str | None = None, *, transient: bool = False) -> None:
        """Append a message of the server's own making to the log."""
        self._hearer.say(self, message, owner, records.TRANSIENT * transient)

    def opened(self) -> None:
        """The kernel is taken for ready."""
        self._hearer.opened(self.kernel_id)

    async def disconnect(self) -> None:
        """The process has ended, and what it has said is told of. Bounded."""
        self.info = None
        try:
            await self._hearer.disconnect(self.kernel_id)
        except (KeeperUnavailable, OSError) as error:
            logger.warning(
                "kernel %s: its sockets stay open: %s",
                self.kernel_id,
                error,
                extra={"kernel_id": self.kernel_id},
            )

    def renew(self) -> None:
        """The newest file of the log cannot be read."""
        self._hearer.renew(self.kernel_id)

    def drop(self) -> None:
        """The kernel is gone."""
        self._hearer.drop(self.kernel_id)

    async def settle(self) -> None:
        """Take the last messages of a process that has ended; bounded by `SETTLE_SECONDS`."""
        quiet = 0
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while quiet < 3:
                    quiet = 0 if await self._hearer.settle(self.kernel_id) else quiet + 1
                    await asyncio.sleep(PAUSE_SECONDS)
        except (TimeoutError, KeeperUnavailable, OSError):
            pass

    async def stdin_connected(self) -> None:
        """Return when input requests can arrive, or after `STDIN_SECONDS`.

        A kernel's ROUTER drops an input request for a peer that is not connected yet. Not every
        kernel has the channel.
        """
        try:
            async with asyncio.timeout(STDIN_SECONDS):
                while not await self._hearer.stdin_connected(self.kernel_id):  # noqa: ASYNC110
                    await asyncio.sleep(PAUSE_SECONDS)
        except (TimeoutError, KeeperUnavailable, OSError):
            pass

    # What the hearer tells

    def on_heard(self, heard: Heard) -> None:
        """The kernel is heard: for the first time, or by another keeper."""
        self.handle, self.session, self.epoch = heard.handle, heard.session, heard.epoch
        self._taken = heard.taken
        self.known = heard.end
        self._on_their_way.clear()
        self._bytes = 0
        self._owner.on_heard(heard)

    def on_bell(self, bell: Bell) -> None:
        """The log goes so far, and so many requests were taken."""
        taken, self._taken = bell.taken - self._taken, bell.taken
        self.known = max(self.known, bell.end)
        for _ in range(min(taken, len(self._on_their_way))):
            self._bytes -= self._on_their_way.popleft()
        self._owner.on_bell(bell)
        if taken:
            self._owner.on_writable()

    def on_malformed(self, count: int, channel: str, reason: str) -> None:
        """Messages of the kernel's were dropped."""
        self._owner.on_malformed(count, channel, reason)
