"""Putting a kernel's log together again, after the process of the server that wrote it has ended.

Three witnesses have it: the journal (which number was given to what), the keeper (what the kernel
published, in order, and since), and the files of the log (what had left memory). What none of them
has is a gap. What the kernel has published since goes on with the next numbers.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Final, Protocol

from app.managers.channels import Channels
from app.managers.entries import Position
from app.managers.journal import BATCH, Journal, Noted, key_of
from app.managers.keeping import Keeper
from app.managers.log import NOBODY
from app.managers.traffic import Traffic
from app.protocol import wire
from app.protocol.messages import MalformedMessage, Message
from app.protocol.signing import Signer

__all__ = ["PROBE_SECONDS", "Ear", "Witnessed", "align", "put_together", "ring_of"]

logger = logging.getLogger(__name__)

PROBE_SECONDS: Final = 2.0
"""How long a kernel may take to be heard before it is owned without that: it may be busy."""

RING_SECONDS: Final = 2.0
"""How long the keeper may take to hear what we have heard."""

MESSAGES_PER_TURN: Final = 256


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
    def first_published(self) -> bytes | None:
        """What the kernel published first, of all that was heard."""
        return next((key_of(m) for m in self.messages if m.channel == "iopub"), None)


class Witnessed(Protocol):
    """What somebody else has heard: `app.managers.keeping.Keeper`."""

    async def said(self, kernel_id: str, after: int) -> list[tuple[int, list[bytes]]]:
        """A page of what the kernel published behind an index, as the frames received."""


async def ring_of(
    keeper: Keeper | Witnessed, kernel_id: str, signer: Signer, until: Callable[[], bytes | None]
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


def align(keys: Iterable[bytes], ring: Sequence[bytes]) -> tuple[list[int | None], int]:
    """Where in the ring each of the numbered messages is, and where what has no number begins.

    Both are in the order in which the kernel published, though either may lack what the other
    has. What the ring has between two that are numbered was not to be numbered.
    """
    places: defaultdict[bytes, deque[int]] = defaultdict(deque)
    for index, key in enumerate(ring):
        places[key].append(index)
    last = -1
    found: list[int | None] = []
    for key in keys:
        waiting = places.get(key)
        while waiting and waiting[0] <= last:
            waiting.popleft()
        if waiting:
            last = waiting.popleft()
            found.append(last)
        else:
            found.append(None)
    return found, last + 1


async def put_together(
    traffic: Traffic,
    journal: Journal | None,
    noted: list[Noted],
    ring: list[Message] | None,
    ear: Ear,
    *,
    whole: bool = False,
) -> tuple[int, bool]:
    """Put back what was numbered, number what is new; how many numbers are lost.

    And whether everything that the kernel has published meanwhile was heard. ``ring`` is None where
    nobody has listened. ``whole``: every number was noted, and the kernel has said nothing since.
    """
    log = traffic.log
    unheard, ring = ring is None, ring or []
    ring_keys = [key_of(message) for message in ring]
    places, new_from = align(filter(None, map(_key_in_ring, noted)), ring_keys)
    lost, none_found = 0, False
    if journal is not None and noted:
        on_disk = log.segments.end if log.segments is not None else None
        if on_disk is not None and on_disk.cursor > noted[-1].seq:
            log.begin_at(journal.head[0], on_disk)
        else:
            first = noted[0]
            log.begin_at(journal.head[0], on_disk or Position(first.seq, first.offset))
        found = iter(places)
        for count, entry in enumerate(noted):
            place = next(found) if _key_in_ring(entry) else None
            message = entry.message
            if place is not None:
                message = traffic.shown(ring[place])
            lost += _put_back(traffic, entry, message)
            if count % MESSAGES_PER_TURN == 0:
                await asyncio.sleep(0)
        none_found = bool(places) and all(place is None for place in places)
        if (unheard or none_found) and not whole:
            # It goes on at a later place; how much is between nobody knows. The numbers that were
            # given and not noted must stand for nothing else.
            start = log.next_seq
            log.put_back_hole(Position(start + BATCH, log.end.offset))
            journal.note_hole(start, log.end)  # nor for the process after this one
    elif journal is not None:
        log.begin_at(journal.head[0], log.end)
    log.journal = journal
    _go_on(traffic, ring[new_from:], ear)
    gapless = not (unheard or none_found) and ear.first_published in ring_keys
    return lost, gapless


def _key_in_ring(entry: Noted) -> bytes:
    """What finds a message among those that the kernel has published; empty for any other.

    What the kernel has published for nobody is kept whole, because of that.
    """
    message = entry.message
    if message is not None and message.channel == "iopub" and entry.owner == NOBODY:
        return key_of(message)
    return entry.key


def _put_back(traffic: Traffic, entry: Noted, message: Message | None) -> int:
    """Put one number back; 1 if what it stands for is lost."""
    log = traffic.log
    place = Position(entry.seq, entry.offset)
    if entry.seq < log.next_seq:  # it is on disk
        known = True
    elif known := message is not None:
        assert message is not None
        log.put_back_hole(place)
        log.put_back(message, entry.owner, place, transient=entry.transient)
    else:
        log.put_back_hole(Position(entry.seq + 1, entry.offset + entry.size))
    if message is not None and entry.seq >= log.next_seq - 1:
        traffic.replay(message, by_kernel=entry.published)
    return not known


def _go_on(traffic: Traffic, said: list[Message], ear: Ear) -> None:
    """Number what nobody has: what the keeper heard, and what we have heard ourselves."""
    for message in in_order(said, ear.messages):
        traffic.on_message(message)


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
