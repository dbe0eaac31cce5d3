"""Messages that the server itself puts into a kernel's log, in the kernel's place."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, Final

import msgspec

from ...protocol.compose import make_message
from ...protocol.messages import Message
from ..log.message_log import MessageLog
from ..state import KernelState
from .line import Line

__all__ = ["Voice"]

logger = logging.getLogger(__name__)

MAX_UNSAID: Final = 4096
"""Messages that wait to be in the log."""

SAY_SECONDS: Final = 2.0
"""How long a message of the server's may take to be in the log."""


class Voice:
    """The server's own messages about one kernel, as if the kernel had sent them.

    ``session`` is that of the kernel's own messages, which these carry too (see `make_message`).
    """

    def __init__(self, line: Line, log: MessageLog, state: KernelState) -> None:
        self.session = line.session
        self._line = line
        self._log = log
        self._state = state
        self.has_log = False
        """Whether there is, or was, a log."""
        # What is not in the log yet: the message, its owner, and whether it is transient. Whoever
        # writes the log may be gone, and is told again then.
        self._unsaid: deque[tuple[Message, str | None, bool]] = deque(maxlen=MAX_UNSAID)
        self._is_held = False
        self._awaited: dict[str, asyncio.Future[None]] = {}  # by msg_id, until it is in the log

    def make(
        self,
        channel: str,
        msg_type: str,
        content: dict[str, Any] | bytes,
        parent: bytes = b"{}",
    ) -> Message:
        """A message with this content that answers the request with the header ``parent``."""
        return make_message(channel, msg_type, content, session=self.session, parent=parent)

    def say(
        self, message: Message, owner: str | None = None, *, transient: bool = False
    ) -> Message:
        """Have a message appended to the log; it is returned.

        ``owner`` is the one session that is to see the message, ``transient`` means that clients
        which come later are not shown it.
        """
        if len(self._unsaid) == MAX_UNSAID:
            logger.warning(
                "kernel %s: what is said in its place is lost: its log is not written",
                self._line.kernel_id,
                extra={"kernel_id": self._line.kernel_id},
            )
            self._unsaid.clear()  # and with one line for all of that
        self._unsaid.append((message, owner, transient))
        if self.has_log and not self._is_held:
            self._line.say(message, owner, transient=transient)
        return message

    def announce(self, execution_state: str) -> Message:
        """Tell every client a state of the kernel, as a status without a parent.

        Clients that come later are not told: they are greeted with the state of then.
        """
        status = self.make("iopub", "status", {"execution_state": execution_state})
        return self.say(status, transient=True)

    def greeting(self) -> Message:
        """A status that tells a new connection the present state, before anything else.

        Its metadata tells which numbers the log has.
        """
        log = self._log
        numbers = {"epoch": log.epoch, "first": log.first_seq, "next": log.next_seq}
        return make_message(
            "iopub",
            "status",
            {"execution_state": self._state.greeting},
            session=self.session,
            metadata=msgspec.json.encode({"kernelkeep": numbers}),
        )

    def hold(self) -> None:
        """Say nothing before `go_on`: the log may have what was said before already."""
        self._is_held = True

    def go_on(self) -> None:
        """There is a log, which is read: append the messages that are not in it."""
        self.has_log, self._is_held = True, False
        for message, owner, transient in self._unsaid:
            self._line.say(message, owner, transient=transient)

    async def wait_until_said(self, message: Message | None) -> None:
        """Return when this message is in the log, or after `SAY_SECONDS`."""
        if message is None or not self.has_log:
            return
        msg_id = message.header.msg_id
        said = self._awaited[msg_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(SAY_SECONDS):
                await said
        except TimeoutError:
            logger.warning(
                "kernel %s: its log is not written",
                self._line.kernel_id,
                extra={"kernel_id": self._line.kernel_id},
            )
        finally:
            del self._awaited[msg_id]

    def on_said(self, message: Message) -> None:
        """This message of the server's was read in the log."""
        msg_id = message.header.msg_id
        if any(one.header.msg_id == msg_id for one, _, _ in self._unsaid):
            # What was said before it, and is not in the log, found no room there: it is a gap.
            while self._unsaid.popleft()[0].header.msg_id != msg_id:
                pass
        said = self._awaited.get(msg_id) if self._awaited else None
        if said is not None and not said.done():
            said.set_result(None)
