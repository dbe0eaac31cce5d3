"""The messages that the server puts into a kernel's log in the kernel's place."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any, Final

import msgspec

from ...keeper.requests import MAX_REQUESTS
from ...log_formats import about
from ...protocol.compose import make_message
from ...protocol.messages import ClientMessage, Message
from ..log.message_log import MessageLog
from ..state import KernelState
from .line import Line

__all__ = ["Voice"]

logger = logging.getLogger(__name__)

MAX_UNSAID: Final = 4 * MAX_REQUESTS
"""How many messages of the server may wait to be in the log: more than the end of a process has
said at once, in one turn of the loop, which is three for each pending request at the most. While
the keeper is away, clients that ask a busy kernel for its ``kernel_info`` add four for each."""

SAY_SECONDS: Final = 2.0
"""How many seconds `Voice.wait_until_said` waits for a message to be in the log: far longer than a
keeper at work takes. One that is away is not waited for; it may never come back."""


class Voice:
    """The server's messages about one kernel, which look as if the kernel had sent them.

    ``session`` is the session of the kernel's own messages; the server's carry the same (see
    `make_message`).
    """

    def __init__(self, line: Line, log: MessageLog, state: KernelState) -> None:
        self.session = line.session
        self._line = line
        self._log = log
        self._state = state
        self.has_log = False
        """Whether the keeper has opened the log, ever."""
        # Messages that were not read in the log yet, each with its owner and whether it is
        # transient. The keeper may be gone before it has written one; the next is given it again.
        self._unsaid: deque[tuple[Message, str | None, bool]] = deque(maxlen=MAX_UNSAID)
        self._is_held = False
        self._awaited: dict[str, asyncio.Future[None]] = {}  # by msg_id, in `wait_until_said`

    def make(
        self,
        channel: str,
        msg_type: str,
        content: dict[str, Any] | bytes,
        parent: bytes = b"{}",
    ) -> Message:
        """A message with this content; ``parent`` is the raw header of the request it answers."""
        return make_message(channel, msg_type, content, session=self.session, parent=parent)

    def say(
        self, message: Message, owner: str | None = None, *, transient: bool = False
    ) -> Message:
        """Have the keeper append a message to the log; returns the message.

        ``owner`` is the one session that is to see the message; None is every session. Clients that
        come later are not shown a ``transient`` message.
        """
        if len(self._unsaid) == MAX_UNSAID:
            about(logger, kernel_id=self._line.kernel_id).warning(
                "kernel %s: what is said in its place is lost: its log is not written",
                self._line.kernel_id,
            )
            self._unsaid.clear()  # all of them: so there is one warning, and not one for each
        # Before the keeper gets the message: if the link is lost with it, `go_on` says it again.
        self._unsaid.append((message, owner, transient))
        if self.has_log and not self._is_held:
            self._line.say(message, owner, transient=transient)
        return message

    def announce(self, execution_state: str) -> Message:
        """Tell every attached client a state of the kernel, as a status without a parent.

        Clients that come later are not shown it: their greeting tells the state at that time.
        """
        status = self.make("iopub", "status", {"execution_state": execution_state})
        return self.say(status, transient=True)

    def warn(self, text: str) -> Message:
        """Tell every attached client a line on stderr, which is no request's output.

        Clients that come later are not shown it: it is about what comes soon.
        """
        content = {"name": "stderr", "text": f"kernelkeep: {text}\n"}
        return self.say(self.make("iopub", "stream", content), transient=True)

    def greeting(self) -> Message:
        """The status that is the first message on a new connection: the kernel's present state.

        Its metadata has the log's epoch, its oldest number and the next one.
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
        """Say nothing before `go_on`.

        Another keeper goes on with the log. It may hold messages that were given to the keeper
        before; reading it takes them out of the unsaid ones (`on_said`), so that `go_on` gives the
        next keeper only those that it lacks.
        """
        self._is_held = True

    def go_on(self) -> None:
        """Have the messages appended that are not in the log, which has been read to its end."""
        # A keeper may be lost in the middle of this. The messages stay here until they are read in
        # the log, so the next `go_on` gives those that are missing to the next keeper.
        self.has_log, self._is_held = True, False
        for message, owner, transient in self._unsaid:
            self._line.say(message, owner, transient=transient)

    async def wait_until_said(self, message: Message | None) -> None:
        """Return when this message was read in the log, or after `SAY_SECONDS` with a warning."""
        if message is None or not self.has_log:
            return
        # No caller suspends between saying a message and this, so the message cannot have been read
        # before it is awaited.
        msg_id = message.header.msg_id
        said = self._awaited[msg_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(SAY_SECONDS):
                await said
        except TimeoutError:
            about(logger, kernel_id=self._line.kernel_id).warning(
                "kernel %s: its log is not written", self._line.kernel_id
            )
        finally:
            del self._awaited[msg_id]

    def on_said(self, message: Message) -> None:
        """Take note that a message of the server was read in the log."""
        msg_id = message.header.msg_id
        if any(one.header.msg_id == msg_id for one, _, _ in self._unsaid):
            # The keeper appends in order. A message said before this one that is not in the log
            # found no room there: its number is a gap, and it is not said again.
            while self._unsaid.popleft()[0].header.msg_id != msg_id:
                pass
        said = self._awaited.get(msg_id) if self._awaited else None
        if said is not None and not said.done():
            said.set_result(None)

    def answer_kernel_info(self, message: ClientMessage, owner: str, info: bytes) -> None:
        """Answer a ``kernel_info_request`` from the cached reply, as the kernel itself is busy.

        Clients wait for the busy status, the reply and the idle status of this request. The last
        of them would leave the client with a wrong state, so a status with the true one follows.
        """
        parent = bytes(message.parts[0])
        for channel, msg_type, content in (
            ("iopub", "status", {"execution_state": "busy"}),
            ("shell", "kernel_info_reply", info),
            ("iopub", "status", {"execution_state": "idle"}),
        ):
            self.say(self.make(channel, msg_type, content, parent), owner)
        self.say(self.greeting(), owner)
