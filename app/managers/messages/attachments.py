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
"""Places kept per kernel for sessions whose connection is gone; the oldest is forgotten first."""

SESSION_SECONDS: Final = 86400.0
"""How long, at the least, the place of a session that left is kept; longer if the log is."""

PLACE_SECONDS: Final = 60.0
"""How often the place of a client that stays where it is is noted anew: it was there until then."""


class Attachments:
    """The clients of one kernel. ``journal`` is that of a kernel which is to outlive the server."""

    def __init__(
        self, log: MessageLog, prompts: Prompts, state: KernelState, settings: Settings
    ) -> None:
        self.journal: Journal | None = None
        self._log = log
        self._prompts = prompts
        self._state = state
        self._buffers = settings.buffer_offline_messages
        self._session_seconds = max(SESSION_SECONDS, settings.log_age)
        self._attached: dict[str, Reader] = {}
        self._departed: dict[str, tuple[Position, float]] = {}  # and since when
        # What the journal has of the sessions that are attached, and since when.
        self._noted: dict[str, tuple[Position, float]] = {}

    def __len__(self) -> int:
        """The number of open connections."""
        return len(self._attached)

    def __contains__(self, session: str) -> bool:
        """Whether this session has an open connection."""
        return session in self._attached

    def attach(self, session: str, start: Position | None = None) -> Reader:
        """A reader for a connection: from ``start``, where its session left off, or from now on.

        Of two connections with one session the newer wins: the older's reader is told that it is
        replaced, and the newer goes on from what has arrived there.
        """
        self._forget_departed()
        left_at, _ = self._departed.pop(session, (None, 0.0))
        journal = self.journal
        if left_at is None and journal is not None and self._buffers:
            left_at = journal.place_of(session, self._session_seconds)
        older = self._attached.pop(session, None)
        if older is not None:
            left_at = older.arrived
            older.replaced = True
            self._log.wake()
        start = start or left_at
        self._state.changes += 1
        reader = self._attached[session] = Reader(self._log, session, start)
        if journal is not None:
            journal.put_place(session, reader.position)
        return reader

    def open_prompts(self, reader: Reader) -> list[Message]:
        """The prompts that a new connection is to be shown although they lie behind its reader.

        Those of its own session that it has closed a connection on: a page that was reloaded has
        them no more, while one whose connection broke still has. And those of sessions whose
        connection is gone, for a page that comes back as another session. They have no number.
        """
        start = max(reader.position.cursor, self._log.first_seq)
        again = []
        for prompt in self._prompts:
            if prompt.owner == reader.session:
                is_wanted = prompt.seq < start and not prompt.is_shown
                is_wanted |= reader.position.cursor <= prompt.seq < start  # it has left the log
                prompt.is_shown = True
            else:
                # Who runs code over HTTP looks for its prompts there.
                over_http = prompt.execution is not None and not prompt.execution.by_client
                is_wanted = prompt.owner not in self._attached and not over_http
            if is_wanted:
                asked = prompt.message
                again.append(Message(asked.channel, asked.frame, asked.header, asked.parent))
        return again

    def detach(self, reader: Reader, *, closed: bool = False) -> None:
        """The connection is gone; its session may come back to where it was.

        ``closed``: by the client, in due form, rather than cut.
        """
        if self._attached.get(reader.session) is not reader:
            return
        for prompt in self._prompts:
            if closed and prompt.owner == reader.session:
                prompt.is_shown = False
        del self._attached[reader.session]
        self._noted.pop(reader.session, None)
        self._state.changes += 1
        if self._log.closed:
            self.let_go_of_log()
        if not self._buffers:
            return
        self._departed[reader.session] = (reader.arrived, time.monotonic())
        if self.journal is not None:
            self.journal.put_place(reader.session, reader.arrived)
        self._forget_departed()

    def note_places(self) -> None:
        """Note, for the next server, how far each client has come."""
        journal = self.journal
        if journal is None:
            return
        now = time.monotonic()
        old = now - PLACE_SECONDS
        for session, reader in self._attached.items():
            place, noted = reader.arrived, self._noted.get(session)
            if noted is None or noted[0] != place or noted[1] < old:
                self._noted[session] = place, now
                journal.put_place(session, place)

    def note_replaced(self, replaced: bool) -> None:
        """Note, for the next server, whether the kernel's process is about to be replaced."""
        if self.journal is not None:
            self.journal.replaced = replaced

    def let_go_of_log(self) -> None:
        """Close the files of a log that is gone, unless a client still reads them.

        The last client that detaches closes them then. Followers over HTTP have read the rest.
        """
        if not self._attached:
            self._log.let_go()

    def _forget_departed(self) -> None:
        """Drop the places of sessions that have been away too long, or are too many."""
        too_old = time.monotonic() - self._session_seconds
        for session, (_, since) in tuple(self._departed.items()):
            if since >= too_old and len(self._departed) <= MAX_DEPARTED:
                return
            del self._departed[session]
