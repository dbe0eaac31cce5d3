"""The server's own reading of one kernel's log, which comes before that of all clients."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Final

from ...keeper.hearings import Heard
from ...protocol.link import Bell
from ..log.message_log import Gap, MessageLog, Position
from .conclusions import Conclusions
from .line import Line
from .outbox import Outbox
from .request_ends import RequestEnds
from .voice import Voice

__all__ = ["LogReading"]

MESSAGES_PER_TURN: Final = 64
BYTES_PER_TURN: Final = 2**19
"""How much of one log is read in one turn of the event loop, so that no kernel starves others."""


class LogReading:
    """Reads one kernel's log as far as the bells tell, a bounded part in each turn of the loop."""

    def __init__(
        self,
        log: MessageLog,
        line: Line,
        conclusions: Conclusions,
        voice: Voice,
        ends: RequestEnds,
        outbox: Outbox,
    ) -> None:
        self.on_loss: Callable[[], None] = lambda: None
        """Called when messages of the kernel are lost, or no keeper heard it for a while."""
        self._log = log
        self._line = line
        self._conclusions = conclusions
        self._voice = voice
        self._ends = ends
        self._outbox = outbox
        self._reading: asyncio.Handle | None = None
        # The end of the log when a keeper began to hear the kernel again: no request is sent before
        # the log has been read up to there. None while nothing stands in the way of requests.
        self._read_first: int | None = None
        self._is_again = False  # whether no keeper heard the kernel for a while before that

    @property
    def comes_first(self) -> bool:
        """Whether the log has to be read further before a request may be sent to the kernel."""
        return self._read_first is not None

    def on_heard(self, heard: Heard) -> None:
        """Begin with a log: a keeper hears the kernel, perhaps not the one that heard it before."""
        self._log.begin_at(heard.epoch, heard.bell)
        if self._voice.has_log:
            # This is another keeper, or the same one over another link, or for another process.
            # Requests and messages that left here before are in the log, or are lost with the link:
            # only the log tells. So nothing is sent or said until the log has been read up to its
            # present end, and nothing is done twice.
            self._read_first = max(heard.end[0], heard.ahead)
            self._is_again = heard.again
            self._voice.hold()
        else:
            self._voice.go_on()
        if not self._conclusions.replaying:
            self._read_on()

    def _go_on(self) -> None:
        """Say and send again the messages and requests that the keeper before has not logged."""
        self._read_first = None
        self._voice.go_on()
        if self._line.connected:
            self._ends.send_again(self._line)
            if self._is_again:
                self._ends.was_unheard = self._ends.has_loss = True
                self.on_loss()
        self._outbox.flush()

    def on_bell(self, bell: Bell) -> None:
        """Read on: the log has grown up to the place that the bell tells.

        The keeper writes records before it rings, so all that lies before that place can be read.
        """
        before = self._log.next_seq
        self._log.advance(bell)
        if self._log.next_seq > before:  # the log has dropped messages that were not read here
            self._on_loss()
        # If a turn of reading is planned already, that turn sees the new end too.
        if self._reading is None and not self._conclusions.replaying:
            self._read_on()

    def _read_on(self) -> None:
        """Draw conclusions from the next messages of the log, then let readers see them.

        This reads a bounded number, and plans another turn for the rest.
        """
        self._reading = None
        log = self._log
        found = log.next_unseen(MESSAGES_PER_TURN, BYTES_PER_TURN)
        if isinstance(found, Gap):
            end = log.end
            log.show(Position(end.cursor + found.messages, end.offset + found.bytes))
            # A gap without bytes is one that a keeper left for a time in which none heard the
            # kernel (`Hearing.connect_again`): no request has left in that time, so none is in
            # doubt. Any other gap may have held replies, or the headers of requests.
            if found.bytes or log.is_cut_off:
                self._on_loss()
        elif found:
            self._conclusions.take_all(found)
            log.step(found[-1])
            log.wake()
        if self._read_first is not None and log.next_seq >= self._read_first:
            self._go_on()
        if log.unseen:
            self._reading = asyncio.get_running_loop().call_soon(self._read_on)

    def _on_loss(self) -> None:
        """Note that messages of the kernel are lost, so that no request waits for one of them."""
        if self._log.is_cut_off:  # messages written to that file from now on would be lost as well
            self._log.is_cut_off = False
            self._line.renew()
        self._ends.doubt()
        if not self._conclusions.replaying:
            self.on_loss()

    async def read_all(self) -> None:
        """Return when the log is read up to the last bell."""
        # A bell that comes during the sleep finds a turn planned, or plans one: the loop goes on
        # until a turn has found nothing more.
        while self._reading is not None:
            self._reading.cancel()
            self._read_on()
            await asyncio.sleep(0)

    async def replay(self, start: int) -> None:
        """Read the log again from number ``start`` to its end, which bells may move meanwhile."""
        log = self._log
        log.show(log.place_of(start))
        while log.unseen:
            self._read_on()
            self._cancel()
            await asyncio.sleep(0)

    def skip(self) -> None:
        """Let readers see all that the log has; no conclusions are drawn from it."""
        self._cancel()
        self._log.show(self._log.place_of(sys.maxsize))

    def stop(self) -> None:
        """Read no further: the next server does."""
        self._cancel()
        self._conclusions.replaying = True  # bells that still come do not start a turn of reading

    def _cancel(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
