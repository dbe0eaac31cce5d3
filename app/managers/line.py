"""The line to who hears a kernel: requests go there, and it tells how far the kernel's log goes.

Where kernels outlive the server the keeper hears them (`app.managers.keeping`); otherwise the
server itself does, by the same means.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from app.keeper.hearings import Heard, Hearings
from app.managers.errors import KeeperUnavailable, KernelUnreachable
from app.protocol import records
from app.protocol.link import Bell
from app.protocol.messages import ClientMessage, Message
from app.settings import Settings

__all__ = ["Hearer", "Line", "LineOwner", "LocalHearer"]

logger = logging.getLogger(__name__)

WINDOW: Final = 256
WINDOW_BYTES: Final = 2**23
"""Requests, and their bytes, that may be on their way to a kernel that takes none. The next ones
wait here, where their senders can be held back. What does not go to the shell channel has as much
again: an interrupt does not wait behind code that nobody takes."""

SETTLE_SECONDS: Final = 0.2
"""How long the last messages of a process that has ended may take to arrive."""

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
            logger.warning("kernel %s: its sockets stay open: %s", self.kernel_id, error)

    def renew(self) -> None:
        """The newest file of the log cannot be read."""
        self._hearer.renew(self.kernel_id)

    def drop(self) -> None:
        """The kernel is gone."""
        self._hearer.drop(self.kernel_id)

    async def settle(self) -> None:
        """Take the last messages of a process that has ended; bounded by `SETTLE_SECONDS`."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + SETTLE_SECONDS
        quiet = 0
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while quiet < 3 and loop.time() < deadline:
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


class LocalHearer:
    """Hears kernels in the server's own process, with which they end.

    Make it inside a running event loop, and `close` it there.
    """

    def __init__(self, settings: Settings) -> None:
        self._lines: dict[int, Line] = {}
        self._by_id: dict[str, Line] = {}
        self._malformed: dict[str, int] = {}
        self._hearings = Hearings(self._ring, self._on_malformed)
        room = self._hearings.room
        room.each, room.together = settings.log_bytes, settings.log_total_bytes
        room.age = settings.log_age

    async def hear(
        self, line: Line, directory: Path, info: Mapping[str, Any] | None, *, anew: bool
    ) -> Heard:
        """As `Hearer.hear`."""
        try:
            heard = self._hearings.hear(
                line.kernel_id,
                session=line.session,
                epoch=line.epoch,
                directory=directory,
                info=info,
                anew=anew,
            )
        except (OSError, ValueError) as error:
            raise KernelUnreachable(str(error)) from error
        self._lines[heard.handle] = self._by_id[line.kernel_id] = line
        line.on_heard(heard)
        return heard

    def request(self, line: Line, message: ClientMessage, owner: str) -> None:
        """As `Hearer.request`."""
        hearing = self._hearings.by_handle(line.handle)
        if hearing is not None:
            hearing.request(message, owner)

    def say(self, line: Line, message: Message, owner: str | None, flags: int) -> None:
        """As `Hearer.say`."""
        hearing = self._hearings.by_handle(line.handle)
        if hearing is not None:
            hearing.say(message.channel, message.frame, owner, flags)

    async def settle(self, kernel_id: str) -> bool:
        """As `Hearer.settle`."""
        return self._hearings.settle(kernel_id)

    async def stdin_connected(self, kernel_id: str) -> bool:
        """As `Hearer.stdin_connected`."""
        hearing = self._hearings.get(kernel_id)
        return hearing is None or hearing.stdin_connected

    def opened(self, kernel_id: str) -> None:
        """As `Hearer.opened`."""
        hearing = self._hearings.get(kernel_id)
        if hearing is not None:
            hearing.opened = True

    async def disconnect(self, kernel_id: str) -> None:
        """As `Hearer.disconnect`."""
        self._hearings.disconnect(kernel_id)

    def renew(self, kernel_id: str) -> None:
        """As `Hearer.renew`."""
        self._hearings.renew(kernel_id)

    def drop(self, kernel_id: str) -> None:
        """As `Hearer.drop`."""
        self._hearings.flush()
        self._hearings.forget(kernel_id)
        self._malformed.pop(kernel_id, None)
        line = self._by_id.pop(kernel_id, None)
        if line is not None:
            self._lines.pop(line.handle, None)

    def close(self) -> None:
        """Close every socket and every file."""
        self._hearings.close()

    def _ring(self, bells: list[Bell]) -> None:
        for bell in bells:
            line = self._lines.get(bell.handle)
            if line is not None:
                line.on_bell(bell)

    def _on_malformed(self, kernel_id: str, channel: str, reason: str) -> None:
        count = self._malformed[kernel_id] = self._malformed.get(kernel_id, 0) + 1
        line = self._by_id.get(kernel_id)
        if line is not None:
            line.on_malformed(count, channel, reason)
