"""The clients of one kernel: their readers, and the places to which their sessions come back."""

from __future__ import annotations

import time
from typing import Final

from ...protocol.messages import Message
from ...settings import Settings
from ..executions.prompts import Prompts
from ..log.entries import Position
from ..log.journal import Journal
from ..log.message_log import MessageLog, Reader
from ..state import KernelState

__all__ = ["Attachments"]

MAX_DEPARTED: Final = 256
"""How many sessions without a connection have a place, per kernel; the oldest goes first."""

SESSION_SECONDS: Final = 86400.0
"""How long the place of a departed session is remembered, at the least: ``log_age`` if longer."""

PLACE_SECONDS: Final = 60.0
"""How often the journal gets the place of a client that has not moved, with the present time.

The time shows how long that client was attached.
"""


class Attachments:
    """The clients of one kernel: which sessions are attached, and where departed ones left off.

    ``journal`` holds the same places on disk, for a kernel that is to outlive the server.
    """

    def __init__(
        self, log: MessageLog, prompts: Prompts, state: KernelState, settings: Settings
    ) -> None:
        self.journal: Journal | None = None
        self._log = log
        self._prompts = prompts
        self._state = state
        self._buffers = settings.buffer_offline_messages
        self._session_seconds = max(SESSION_SECONDS, settings.log_age)
        self.attached: dict[str, Reader] = {}
        """The readers of the sessions that have a connection. Only this class changes it."""
        self._departed: dict[str, tuple[Position, float]] = {}  # and since when
        # The place that the journal has of each attached session, and since when (monotonic).
        self._noted: dict[str, tuple[Position, float]] = {}

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
        self._forget_departed()
        left_at, _ = self._departed.pop(session, (None, 0.0))
        journal = self.journal
        # The place in memory is newer than the journal's, if there is one.
        if left_at is None and journal is not None and self._buffers:
            left_at = journal.place_of(session, self._session_seconds)
        # A client can come back before its broken connection is noticed: both are there for a
        # moment. The older one's `detach` comes later, and must not remove the newer (see there).
        older = self.attached.pop(session, None)
        if older is not None:
            left_at = older.arrived
            older.replaced = True
            self._log.wake()
        start = start or left_at
        self._state.changes += 1
        reader = self.attached[session] = Reader(self._log, session, start)
        if journal is not None:
            journal.put_place(session, reader.position)
        return reader

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
        self._state.changes += 1
        if self._log.closed:
            self.let_go_of_log()
        if self._buffers:
            self._departed[reader.session] = (reader.arrived, time.monotonic())
            if self.journal is not None:
                self.journal.put_place(reader.session, reader.arrived)
            self._forget_departed()
        if self.journal is not None and not self.attached:
            self.journal.close()

    def note_places(self) -> None:
        """Write to the journal, for the next server, how far each client has come."""
        journal = self.journal
        if journal is None:
            return
        now = time.monotonic()
        old = now - PLACE_SECONDS
        # A message that arrives after this, and before the server is killed, is sent to the client
        # once more by the next server. None is lost: the place is never further than what arrived.
        for session, reader in self.attached.items():
            place, noted = reader.arrived, self._noted.get(session)
            if noted is None or noted[0] != place or noted[1] < old:
                self._noted[session] = place, now
                journal.put_place(session, place)

    def note_replaced(self, replaced: bool) -> None:
        """Write to the journal whether the kernel's process is about to be replaced.

        A server that is killed between stopping a process and launching the next leaves this note,
        and the next server finishes the restart.
        """
        if self.journal is not None:
            self.journal.replaced = replaced
            if not self.attached:
                self.journal.close()

    def let_go_of_log(self) -> None:
        """Close the files of a removed log, unless a client still reads them.

        Then the last client that detaches closes them. Readers over HTTP have had `HELD_SECONDS`.
        """
        if not self.attached:
            self._log.let_go()

    def _forget_departed(self) -> None:
        """Drop the places of sessions that left too long ago, and the oldest of too many."""
        too_old = time.monotonic() - self._session_seconds
        for session, (_, since) in tuple(self._departed.items()):
            if since >= too_old and len(self._departed) <= MAX_DEPARTED:
                return
            del self._departed[session]
