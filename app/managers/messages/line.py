"""The line from the server to one kernel: requests go to its keeper, and bells come from there.

A bell tells how far the kernel's log goes. The keeper's side of the line is a `Hearer`, in
production `app.managers.processes.keeper.keepers`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from ...keeper.hearings import Heard
from ...log_formats import about
from ...protocol import records
from ...protocol.link import Bell
from ...protocol.messages import ClientMessage, Message
from ..errors import KeeperUnavailable

__all__ = ["Hearer", "Line", "LineOwner"]

logger = logging.getLogger(__name__)

WINDOW: Final = 256
WINDOW_BYTES: Final = 2**23
"""How many requests, and bytes of them, may be on their way to a kernel that takes none. Further
requests wait in the server, which can hold their senders back. Requests to other channels than
shell may fill the window twice: an interrupt does not wait behind code that the kernel does not
take."""

SETTLE_SECONDS: Final = 10.0
"""How many seconds the last messages of an ended process may go on arriving. The keeper tells when
all have arrived, if the kernel has, or may have, a request that it has not finished with. If it has
none, or if the keeper is of an earlier version, the keeper only tells whether a look at its sockets
has found a message. Then three looks in a row, `PAUSE_SECONDS` apart, must have found none."""

STDIN_SECONDS: Final = 0.5
"""How much longer than the other channels stdin may take to be connected."""

PAUSE_SECONDS: Final = 0.002


class LineOwner(Protocol):
    """The owner of a line, which the line calls. Its methods must neither block nor raise."""

    def on_bell(self, bell: Bell) -> None:
        """The log has grown up to the place that the bell tells."""

    def on_writable(self) -> None:
        """The kernel has taken requests, so more can be sent."""

    def on_heard(self, heard: Heard) -> None:
        """A keeper has begun to hear the kernel: the first one, or another after it."""

    def on_lost(self, why: str) -> None:
        """The kernel cannot be reached, for this reason, until a keeper is heard of again."""

    def on_malformed(self, count: int, channel: str, reason: str) -> None:
        """The keeper has dropped ``count`` messages in all, the last for ``reason``."""


class Hearer(Protocol):
    """The keeper, as a line sees it: it hears kernels and takes requests for them."""

    async def hear(
        self, line: Line, directory: Path, info: Mapping[str, Any] | None, *, anew: bool
    ) -> Heard:
        """Open a kernel's log, and sockets to its process if ``info`` is given.

        ``info`` is the connection information of the process. ``anew``: the process was just
        launched, so it has had no requests. Raises `KernelUnreachable` or `KeeperUnavailable`.
        """

    def request(self, line: Line, message: ClientMessage, owner: str) -> None:
        """Send a request of the session ``owner`` to the kernel."""

    def say(self, line: Line, message: Message, owner: str | None, flags: int) -> None:
        """Append a message of the server's own making to the log."""

    async def settle(self, kernel_id: str) -> bool:
        """Log what the sockets of an ended process have received, and ring.

        Returns whether there was any message, or may be more.
        """

    async def stdin_connected(self, kernel_id: str) -> bool:
        """Whether the stdin socket is connected, so that input requests can arrive."""

    def opened(self, kernel_id: str, share: tuple[str, int] | None) -> None:
        """Tell the keeper that the server takes the kernel for ready."""

    async def disconnect(self, kernel_id: str) -> None:
        """Close the sockets to a process that has ended; its last messages are logged first."""

    def renew(self, kernel_id: str) -> None:
        """Have the log go on in another file: the newest one cannot be read."""

    def drop(self, kernel_id: str) -> None:
        """Forget a kernel that is gone, and remove its log."""


class Line:
    """The line to one kernel, for the kernel's whole life. ``epoch`` names the log if it is new."""

    def __init__(
        self, hearer: Hearer, kernel_id: str, session: str, epoch: str, owner: LineOwner
    ) -> None:
        self.kernel_id = kernel_id
        self.session = session
        self.epoch = epoch
        self.handle = 0
        self.connected = False
        """Whether the keeper hears a process of the kernel."""
        # What another keeper has to be told to hear the kernel, if this one is lost.
        self.directory = Path()
        self.info: dict[str, Any] | None = None
        # The furthest place of the log that any bell or client has told. A keeper that finds less
        # of the log on disk leaves a gap up to here: no number is ever given to two messages.
        self.known = (1, 0)
        self.share: tuple[str, int] | None = None
        """A key, and how many bytes of messages the logs of all kernels with that key may have."""
        # Answers to prompts that came while there was no link to a keeper.
        self.unsent: list[tuple[ClientMessage, str]] = []
        self._hearer = hearer
        self._owner = owner
        self._taken = 0  # requests, by the last bell: counted since the keeper began to hear
        # Requests not taken yet: the size, the message if it answers a prompt, and the session.
        self._on_their_way: deque[tuple[int, ClientMessage | None, str]] = deque()
        self._bytes = 0

    async def hear(
        self, directory: Path, info: Mapping[str, Any] | None, *, anew: bool = False
    ) -> Heard:
        """Have the keeper open the log, and hear a process. Raises what `Hearer.hear` does."""
        return await self._hearer.hear(self, directory, info, anew=anew)

    def remember(self, directory: Path, info: dict[str, Any] | None) -> None:
        """Remember what the keeper hears, for another keeper."""
        self.directory = directory
        self.info = info if info is not None else self.info

    def send(self, message: ClientMessage, owner: str) -> bool:
        """Send a request; False if the window is full. ``on_writable`` then tells when to retry."""
        way = self._on_their_way
        times = 1 if message.channel == "shell" else 2
        is_full = len(way) >= times * WINDOW
        # When nothing is on its way, any request is taken: a larger one than the window has bytes
        # would never leave.
        if way and (is_full or self._bytes + message.size > times * WINDOW_BYTES):
            return False
        answer = message if message.header.msg_type == "input_reply" else None
        way.append((message.size, answer, owner))
        self._bytes += message.size
        self._hearer.request(self, message, owner)
        return True

    def say(self, message: Message, owner: str | None = None, *, transient: bool = False) -> None:
        """Append a message of the server's own making to the log."""
        self._hearer.say(self, message, owner, records.TRANSIENT * transient)

    def opened(self) -> None:
        """Tell the keeper that the server takes the kernel for ready, and its log's share."""
        self._hearer.opened(self.kernel_id, self.share)

    async def disconnect(self) -> None:
        """Have the sockets to an ended process closed, its last messages logged. Bounded.

        If the keeper cannot be asked, its sockets stay open: that costs file descriptors only.
        """
        # First: a keeper that takes over during the await is not to open sockets to this process.
        self.info = None
        try:
            await self._hearer.disconnect(self.kernel_id)
        except (KeeperUnavailable, OSError) as error:
            about(logger, kernel_id=self.kernel_id).warning(
                "kernel %s: its sockets stay open: %s", self.kernel_id, error
            )

    def renew(self) -> None:
        """Have the log go on in another file: the newest one cannot be read."""
        self._hearer.renew(self.kernel_id)

    def drop(self) -> None:
        """Have the keeper forget the kernel, which is gone, and remove its log."""
        self._hearer.drop(self.kernel_id)

    async def settle(self) -> None:
        """Have the last messages of an ended process logged; bounded by `SETTLE_SECONDS`."""
        quiet = 0
        try:
            async with asyncio.timeout(SETTLE_SECONDS):
                while quiet < 3:
                    quiet = 0 if await self._hearer.settle(self.kernel_id) else quiet + 1
                    await asyncio.sleep(PAUSE_SECONDS)
        except (TimeoutError, KeeperUnavailable, OSError):
            pass

    async def stdin_connected(self) -> None:
        """Return when the stdin socket is connected, or after `STDIN_SECONDS`.

        A kernel's stdin ROUTER drops an input request for a peer that is not connected yet, so no
        code may run before. Some kernels have no stdin channel; for them the time is the end.
        """
        try:
            async with asyncio.timeout(STDIN_SECONDS):
                while not await self._hearer.stdin_connected(self.kernel_id):  # noqa: ASYNC110
                    await asyncio.sleep(PAUSE_SECONDS)
        except (TimeoutError, KeeperUnavailable, OSError):
            pass

    # Called by the hearer

    def on_heard(self, heard: Heard) -> None:
        """Begin with a keeper that has begun to hear the kernel; ``heard`` is how it hears it."""
        self.handle, self.session, self.epoch = heard.handle, heard.session, heard.epoch
        # The link preserves order: a request sent before the question that this answers has reached
        # the keeper, or went down with another keeper. One sent between the question and the answer
        # is counted no more either, so the window is too wide for a moment. It only bounds memory:
        # order and delivery do not depend on it.
        way = self._on_their_way
        for _ in range(min(heard.taken - self._taken, len(way))):
            way.popleft()
        # The log has no answers to prompts: which of them were lost with a link, this count tells.
        self.unsent += [(answer, owner) for _, answer, owner in way if answer is not None]
        self._taken = heard.taken
        self.known = heard.end
        way.clear()
        self._bytes = 0
        self._owner.on_heard(heard)

    def on_bell(self, bell: Bell) -> None:
        """Count the requests that the kernel has taken, and tell the owner of the log's new end.

        ``bell.taken`` counts all requests since the keeper began to hear the kernel, so that one
        bell may stand for several.
        """
        # The kernel may have taken more requests than are in `_on_their_way`: see `on_heard`.
        taken, self._taken = bell.taken - self._taken, bell.taken
        self.known = max(self.known, bell.end)
        for _ in range(min(taken, len(self._on_their_way))):
            self._bytes -= self._on_their_way.popleft()[0]
        self._owner.on_bell(bell)
        if taken:
            self._owner.on_writable()

    def on_lost(self, why: str) -> None:
        """Tell the owner that the kernel's keeper cannot be reached."""
        self._owner.on_lost(why)

    def on_malformed(self, count: int, channel: str, reason: str) -> None:
        """Tell the owner that the keeper has dropped malformed messages."""
        self._owner.on_malformed(count, channel, reason)
