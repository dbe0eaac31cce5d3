"""The clients of one kernel: their readers, and the places to which their sessions come back."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Final, Protocol

from ...protocol.messages import Message
from ...settings import Settings
from ..executions.prompts import Prompts
from ..log.entries import Position
from ..log.message_log import MessageLog, Reader
from ..log.places import MAX_PLACES, SessionPlace, session_key
from ..state import KernelState

__all__ = ["Attachments", "PlaceStore"]

SESSION_SECONDS: Final = 86400.0
"""How long the place of a departed session is remembered, at the least: ``log_age`` if longer."""


class PlaceStore(Protocol):
    """Where the places of one kernel's clients are stored for the next server."""

    def moved(self) -> None:
        """Store the places soon (`Attachments.places`)."""

    async def stored(self) -> None:
        """Return when the places are stored, or cannot be stored just now. Bounded."""


class Attachments:
    """The clients of one kernel: which sessions are attached, and where departed ones left off.

    ``store`` has the same places, for a kernel that is to outlive the server.
    """

    def __init__(
        self, log: MessageLog, prompts: Prompts, state: KernelState, settings: Settings
    ) -> None:
        self.store: PlaceStore | None = None
        self._log = log
        self._prompts = prompts
        self._state = state
        self._buffers = settings.buffer_offline_messages
        self._session_seconds = max(SESSION_SECONDS, settings.log_age)
        self.attached: dict[str, Reader] = {}
        """The readers of the sessions that have a connection. Only this class changes it."""
        # By `session_key`, those that have left first at the beginning; and since when (monotonic).
        self._departed: dict[bytes, tuple[Position, float]] = {}
        self._noted: dict[str, Position] = {}  # the places of attached sessions that are stored
        self._rest_at: int | None = 0  # the log's next number when all clients had come to its end
        self._new: set[str] = set()  # attached sessions of which nothing was known before

    def __len__(self) -> int:
        """The number of open connections."""
        return len(self.attached)

    def __contains__(self, session: str) -> bool:
        """Whether this session has an open connection."""
        return session in self.attached

    def attach(self, session: str, start: Position | None = None) -> Reader:
        """A reader for a new connection of a session.

        It begins at ``start`` if that is given, else where the session left off, else at the end of
        the log. If the session has a connection already, the newer one wins: the older reader is
        told that it is replaced, and the new one begins behind the last message that has arrived
        at the older connection's client.
        """
        # Nothing here awaits. So the newer reader begins just where the older one's client is known
        # to have come to, and the log does not move between the two.
        self._forget_departed()
        left_at, _ = self._departed.pop(session_key(session), (None, 0.0))
        # A client can come back before its broken connection is noticed: both are there for a
        # moment. The older one's `detach` comes later, and must not remove the newer (see there).
        older = self.attached.pop(session, None)
        if older is not None:
            left_at = older.arrived
            older.replaced = True
            self._log.wake()
        is_new, start = left_at is None, start or left_at
        self._state.changes += 1
        reader = self.attached[session] = Reader(self._log, session, start)
        self._rest_at = None
        if self.store is not None and self._buffers:
            if is_new:
                self._new.add(session)
            self._noted[session] = reader.position
            self.store.moved()
        return reader

    async def known(self, reader: Reader) -> None:
        """Return when the next server would know the session of this reader. Bounded.

        The place of a session that comes back is stored already; a place that is stored late only
        has the client get some messages twice. A session without any place would miss the messages
        that the kernel sends while no server is there.
        """
        if self.store is not None and reader.session in self._new:
            await self.store.stored()
            # The session may have ended its connection during the await, or have made another one:
            # its place is stored in any case.
            self._new.discard(reader.session)

    def open_prompts(self, reader: Reader) -> list[Message]:
        """The open prompts to show to a new connection, although its reader has passed them.

        These are the prompts of its own session if it closed its last connection in due form: a
        reloaded page has lost them, while a page whose connection broke still shows them. And the
        prompts of sessions that have no connection, for a page that comes back as another session.
        The messages are copies without a number.
        """
        start = max(reader.position.cursor, self._log.first_seq)
        again = []
        for prompt in self._prompts:
            if prompt.owner == reader.session:
                is_wanted = prompt.seq < start and not prompt.is_shown
                # The log has dropped the prompt before the reader came to it.
                is_wanted |= reader.position.cursor <= prompt.seq < start
                prompt.is_shown = True
            else:
                # A caller that runs code over HTTP finds its prompts in the execution there.
                over_http = prompt.execution is not None and not prompt.execution.by_client
                is_wanted = prompt.owner not in self.attached and not over_http
            if is_wanted:
                asked = prompt.message
                again.append(Message(asked.channel, asked.frame, asked.header, asked.parent))
        return again

    def detach(self, reader: Reader, *, closed: bool = False) -> None:
        """Remember where a connection that is gone left off, for when its session comes back.

        ``closed``: the client closed it in due form, rather than that it broke.
        """
        if self.attached.get(reader.session) is not reader:
            return  # a newer connection of the session has replaced it, and goes on from there
        for prompt in self._prompts:
            if closed and prompt.owner == reader.session:
                prompt.is_shown = False
        del self.attached[reader.session]
        self._noted.pop(reader.session, None)
        self._new.discard(reader.session)
        self._state.changes += 1
        if self._log.closed:
            self.let_go_of_log()
        if self._buffers:
            self._departed[session_key(reader.session)] = (reader.arrived, time.monotonic())
            self._forget_departed()
            if self.store is not None:
                self.store.moved()

    @property
    def at_rest(self) -> bool:
        """Whether `note_places` has nothing to store: every client still has all of the log.

        Without `buffer_offline_messages` there is never anything to store.
        """
        return self._rest_at == self._log.next_seq or not (self._buffers and self.attached)

    def note_places(self) -> None:
        """Have it stored how far each client has come, if one has come further."""
        if self.store is None or not self._buffers:
            return
        # A message that arrives after this, and before the server is killed, is sent to the client
        # once more by the next server. None is lost: the place is never further than what arrived.
        places = {session: reader.arrived for session, reader in self.attached.items()}
        if places != self._noted:
            self._noted = places
            self.store.moved()
        end = self._log.next_seq
        # A place never goes back, nor behind the end: with all clients at the end, none can move.
        self._rest_at = end if all(place.cursor >= end for place in places.values()) else None

    def note_again(self) -> None:
        """Have the places stored again: they were removed for a stop that has failed."""
        if self.store is not None and self._buffers:
            self.store.moved()

    def places(self) -> list[SessionPlace]:
        """The place of each session, to be stored: those that have left first, then the others."""
        began = time.time() - time.monotonic()
        departed = [
            SessionPlace(key, *place, began + since)
            for key, (place, since) in self._departed.items()
        ]
        attached = [
            SessionPlace(session_key(session), *reader.arrived, 0.0)
            for session, reader in self.attached.items()
        ]
        return departed + attached

    def put_back(self, places: Iterable[SessionPlace]) -> None:
        """Take over the places that the server before this one has stored, in order.

        Sessions that had a connection have left just now.
        """
        if not self._buffers:
            return
        now, began = time.monotonic(), time.time() - time.monotonic()
        for place in places:
            since = min(now, place.left - began) if place.left else now
            self._departed[place.session] = Position(place.cursor, place.offset), since

    def let_go_of_log(self) -> None:
        """Close the files of a removed log, unless a client still reads them.

        Then the last client that detaches closes them. Readers over HTTP have had `HELD_SECONDS`.
        """
        if not self.attached:
            self._log.let_go()

    def _forget_departed(self) -> None:
        """Drop the places of sessions that left too long ago, and the oldest of too many."""
        # The sessions are in the order in which they left, as `attach` takes out one that comes
        # back. So behind one that has not left too long ago there is none that has.
        too_old = time.monotonic() - self._session_seconds
        for key, (_, since) in tuple(self._departed.items()):
            if since >= too_old and len(self._departed) <= MAX_PLACES:
                return
            del self._departed[key]
