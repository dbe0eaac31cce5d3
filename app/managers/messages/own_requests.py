"""The server's own requests to one kernel, and what the answers tell of it."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any, Final

import msgspec

from ...protocol.compose import make_parts
from ...protocol.messages import ClientMessage, Message
from .line import Line

__all__ = ["OwnRequests"]

BEHIND_SECONDS: Final = 30.0
"""How long what a kernel has published may be on its way when its reply has come."""

SUBSHELL_SECONDS: Final = 5.0
"""How long a kernel may take to tell which subshells it has."""


class OwnRequests:
    """The server's own requests to one kernel. Their answers are seen by nobody else.

    ``answered`` tells whether the present process has answered a ``kernel_info_request``,
    ``heard_iopub`` whether anything of it has come on iopub.
    """

    def __init__(self, line: Line) -> None:
        self.answered = False
        self.heard_iopub = False
        self.kernel_info: bytes | None = None
        """The content of the kernel's last ``kernel_info_reply``."""
        self._line = line
        self._asked: dict[str, asyncio.Future[bytes]] = {}  # by msg_id
        self._reachable = asyncio.Event()
        self.tells_control = True
        """Whether the kernel publishes statuses of questions on control, as far as is known."""
        self._going_idle: dict[str, asyncio.Future[None]] = {}  # by a question on control

    @property
    def session(self) -> str:
        """The session of these requests."""
        return self._line.session

    @property
    def can_ask(self) -> bool:
        """Whether there is a process that is heard."""
        return self._line.connected

    def on_launch(self) -> None:
        """There is a new process, of which nothing is known yet."""
        self.answered = self.heard_iopub = False
        self._reachable.clear()
        self.tells_control = True

    def on_resume(self, *, was_up: bool) -> None:
        """The log was gone through again; ``was_up`` if the process that is heard has come up.

        What was read there may be of a process before that.
        """
        self.answered = self.heard_iopub = was_up
        self._reachable.clear()
        self._look_reachable()

    def send(self, channel: str, msg_type: str, content: dict[str, Any]) -> str:
        """Send a request: its msg_id; empty if there is no process that is heard."""
        header, parts = make_parts(msg_type, content, self.session)
        if not self._line.connected:
            return ""
        sent = self._line.send(ClientMessage(channel, header, parts), self.session)
        return header.msg_id if sent else ""

    def probe(self) -> None:
        """Ask the kernel for its info, on control (answered while it is busy) and on shell."""
        for channel in ("control", "shell"):
            self.send(channel, "kernel_info_request", {})

    def wake_main_shell(self) -> None:
        """Send the main shell a request, so that it looks at its socket."""
        self.send("shell", "kernel_info_request", {})

    def ask_on_control(self) -> str:
        """Send a question on control: its msg_id; empty if it cannot be sent."""
        return self.send("control", "kernel_info_request", {})

    async def ask(
        self, msg_type: str, content: dict[str, Any], seconds: float, channel: str = "shell"
    ) -> bytes | None:
        """The content of the answer to a request; None if none comes within so many seconds.

        Clients see of the request only what code of the kernel prints meanwhile.
        """
        header, parts = make_parts(msg_type, content, self.session)
        if not self._line.connected:
            return None
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked[header.msg_id] = answer
        try:
            self._line.send(ClientMessage(channel, header, parts), self.session)
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[header.msg_id]

    async def catch_up(self) -> None:
        """Return when all has been read that the kernel has published by now.

        Or after `BEHIND_SECONDS`; a kernel that does not tell is not asked again.
        """
        msg_id = self.ask_on_control()
        if not msg_id:
            return
        gone_idle = self._going_idle[msg_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(BEHIND_SECONDS):
                await gone_idle
        except TimeoutError:
            self.tells_control = False
        finally:
            del self._going_idle[msg_id]

    def on_idle(self, msg_id: str) -> None:
        """The kernel has gone idle for this request of the server's."""
        gone_idle = self._going_idle.get(msg_id)
        if gone_idle is not None and not gone_idle.done():
            gone_idle.set_result(None)

    async def answers_on_shell(self, seconds: float) -> bool:
        """Whether the main shell takes a question, and answers it within so many seconds."""
        return await self.ask("kernel_info_request", {}, seconds) is not None

    async def subshells(self) -> Collection[str] | None:
        """The subshells that the kernel has; None if it does not tell."""
        answer = await self.ask("list_subshell_request", {}, SUBSHELL_SECONDS, "control")
        try:
            return msgspec.json.decode(answer or b"{}", type=_SubshellList).subshell_id
        except (msgspec.MsgspecError, RecursionError):
            return None

    @property
    def implementation(self) -> str:
        """What the kernel calls itself in its ``kernel_info_reply``; empty if that is not known."""
        try:
            return msgspec.json.decode(self.kernel_info or b"{}", type=_Info).implementation
        except (msgspec.MsgspecError, RecursionError):
            return ""

    async def reachable(self) -> None:
        """Return when the kernel has answered a probe and was heard on iopub. Has no bound."""
        await self._reachable.wait()

    def on_reply(self, message: Message) -> None:
        """The kernel has replied, to a request of anybody's."""
        answer = self._asked.get(message.parent.msg_id) if self._asked else None
        if answer is not None and not answer.done():
            answer.set_result(bytes(message.part(3)))
        if message.header.msg_type == "kernel_info_reply":
            self.kernel_info = bytes(message.part(3))
            self.answered = True
            self._look_reachable()

    def on_iopub(self) -> None:
        """The kernel was heard on iopub."""
        if not self.heard_iopub:
            self.heard_iopub = True
            self._look_reachable()

    def _look_reachable(self) -> None:
        if self.answered and self.heard_iopub:
            self._reachable.set()


class _SubshellList(msgspec.Struct):
    subshell_id: list[str] | None = None  # so it is called, although it is a list [JEP 91]


class _Info(msgspec.Struct):
    implementation: str = ""
