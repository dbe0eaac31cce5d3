"""Putting a kernel's story together again, after the process of the server that heard it has ended.

Its log is on disk, to the last message. The executions that the registry knows are followed through
the last part of it once more. The keeper has heard what the kernel has published since, and before:
what is behind the log's last message goes on with the next numbers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Final, Protocol

from app.managers.channels import Channels
from app.managers.entries import Entry, Position
from app.managers.execution import Execution
from app.managers.history import WholeReader
from app.managers.journal import Journal
from app.managers.keeping import Keeper
from app.managers.traffic import Traffic
from app.protocol import wire
from app.protocol.messages import MalformedMessage, Message
from app.protocol.signing import Signer

__all__ = ["PROBE_SECONDS", "Ear", "Witnessed", "connect", "go_on", "replay", "ring_of"]

logger = logging.getLogger(__name__)

PROBE_SECONDS: Final = 2.0
"""How long a kernel may take to be heard before it is owned without that: it may be busy."""

RING_SECONDS: Final = 2.0
"""How long the keeper may take to hear what we have heard."""

REPLAYED: Final = 1024
"""Messages that are gone through again at least: what the kernel said of itself is in them."""

UNKNOWN: Final = 64
"""Numbers that are left out where nobody knows how much was said."""


class Ear:
    """Hears what comes from the sockets while nothing can be numbered yet."""

    def __init__(self, traffic: Traffic) -> None:
        self.messages: list[Message] = []
        self.heard = asyncio.Event()
        self._traffic = traffic

    def on_message(self, message: Message) -> None:
        """Keep it; our own question's answer on iopub shows that nothing is missed from now on."""
        self.messages.append(message)
        if message.parent.session == self._traffic.session and message.channel == "iopub":
            self.heard.set()

    def on_malformed(self, channel: str, error: MalformedMessage) -> None:
        """It is counted."""
        self._traffic.on_malformed(channel, error)

    def on_writable(self) -> None:
        """Nothing waits."""

    @property
    def first_published(self) -> str | None:
        """The id of what the kernel published first, of all that was heard."""
        return next((key_of(m) for m in self.messages if m.channel == "iopub"), None)


class Witnessed(Protocol):
    """What somebody else has heard: `app.managers.keeping.Keeper`."""

    async def said(self, kernel_id: str, after: int) -> list[tuple[int, list[bytes]]]:
        """A page of what the kernel published behind an index, as the frames received."""


def key_of(message: Message) -> str:
    """What tells a message of a kernel's from its others."""
    return message.header.msg_id


async def ring_of(
    keeper: Keeper | Witnessed, kernel_id: str, signer: Signer, until: Callable[[], str | None]
) -> list[Message]:
    """What the keeper has of a kernel, up to at least the message ``until`` tells, or for a while.

    Raises what `Keeper.said` does.
    """
    found: list[Message] = []
    loop = asyncio.get_running_loop()
    deadline = loop.time() + RING_SECONDS
    after = 0
    while True:
        page = await keeper.said(kernel_id, after)
        for index, frames in page:
            after = index
            try:
                found.append(wire.unpack("iopub", frames, signer))
            except MalformedMessage:
                continue  # it was dropped when it came, too
        if page:
            continue
        wanted = until()
        if wanted is None or any(key_of(m) == wanted for m in reversed(found)):
            return found
        if loop.time() > deadline:
            return found
        await asyncio.sleep(0.02)


async def replay(traffic: Traffic, executions: Iterable[Execution]) -> Message | None:
    """Go through the end of the log again; the last message that the kernel has published.

    From where the oldest of the executions was sent that have not ended, as far as is known.
    """
    log = traffic.log
    start = Position(max(1, log.next_seq - REPLAYED), 0)
    under_way = [execution.place for execution in executions if not execution.ended]
    reader = WholeReader(log, log.place_after(min([start, *under_way]).cursor - 1))
    last: Entry | None = None
    while reader.behind:
        for entry in reader.take().entries:
            traffic.replay(entry.message, by_kernel=entry.published)
            if entry.published:
                last = entry
        await asyncio.sleep(0)
    return last.message if last is not None else None


def go_on(
    traffic: Traffic, last: Message | None, said: list[Message] | None, ear: Ear, *, whole: bool
) -> bool:
    """Number what nobody has numbered; whether nothing is missing between.

    ``last`` is what the kernel had published last, as far as the log knows. ``said`` is None where
    nobody has listened meanwhile. ``whole``: the kernel can have said nothing since.
    """
    keys = [key_of(message) for message in said or ()]
    begin, known = 0, said is not None
    if last is not None:
        key = key_of(last)
        known = key in keys
        begin = len(keys) - keys[::-1].index(key) if known else 0
    if not known and not whole and traffic.log.next_seq > 1:
        # How much is between nobody knows.
        traffic.log.skip(UNKNOWN)
    for message in in_order((said or [])[begin:], ear.messages):
        traffic.on_message(message)
    return known and (ear.first_published is None or ear.first_published in keys)


def in_order(said: Sequence[Message], heard: Sequence[Message]) -> list[Message]:
    """What the keeper and this server have heard of a kernel, once each, as it was published.

    The server has everything from the first that it has heard; what the keeper has behind that is
    about to come here, too. What the keeper alone has is older. A keeper that was started anew may
    have begun later, or have nothing of a while.
    """
    published = {key_of(message) for message in heard if message.channel == "iopub"}
    older = list(takewhile(lambda message: key_of(message) not in published, said))
    return [*older, *heard]


def connect(
    make: Callable[..., Channels], traffic: Traffic, journal: Journal | None
) -> tuple[Channels, Channels | None, Ear]:
    """Sockets to a kernel that runs, others for what it still sends to those before them, an ear.

    A kernel answers the socket that asked: its answers to what was asked before come to one that
    bears the same name.
    """
    ear = Ear(traffic)
    channels = make(ear)
    earlier = None
    if journal is not None and journal.head[2].strip(b"\0"):
        earlier = make(ear, identity=journal.head[2], only=("shell", "control", "stdin"))
    return channels, earlier, ear
