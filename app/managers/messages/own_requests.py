"""The server's own requests to one kernel, and the facts that their answers tell."""

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
"""How many seconds the server waits for output that the kernel published before its reply: a flood
of it may still have to be read."""

HEARD_SECONDS: Final = 0.05
"""How many seconds after its first answer a kernel is asked again that was not heard on iopub. Each
pause after that is twice as long: some kernels are never heard."""

SUBSHELL_SECONDS: Final = 5.0
"""How many seconds a kernel may take to answer which subshells it has."""


class OwnRequests:
    """The server's own requests to one kernel. No client sees the answers.

    ``heard_iopub`` tells whether any message of the present process has come on iopub.
    """

    def __init__(self, line: Line) -> None:
        self._answered = asyncio.Event()
        self._hearing_seconds = HEARD_SECONDS
        self.heard_iopub = False
        self.kernel_info: bytes | None = None
        """The content of the kernel's last ``kernel_info_reply``."""
        self._line = line
        # The answers that `ask` awaits, by the msg_id of the request.
        self._asked: dict[str, asyncio.Future[bytes]] = {}
        self._reachable = asyncio.Event()
        self.tells_control = True
        """Whether the kernel goes idle on iopub for requests on control: taken for true until a
        request shows the contrary."""
        # The idle statuses that `catch_up` awaits, by the msg_id of the request on control.
        self._going_idle: dict[str, asyncio.Future[None]] = {}

    @property
    def answered(self) -> bool:
        """Whether the present process has answered a ``kernel_info_request``."""
        return self._answered.is_set()

    @property
    def session(self) -> str:
        """The session in the headers of the server's own requests."""
        return self._line.session

    @property
    def can_ask(self) -> bool:
        """Whether the keeper hears a process that can be asked."""
        return self._line.connected

    def on_launch(self) -> None:
        """Forget the facts about the process before: a new one has been launched."""
        # `Traffic.disconnect` has read all that the process before has said (where the keeper could
        # be asked), so no reply of the old process counts for the new one. An `ask` of the old
        # process, which gets no reply any more, returns None in time.
        self._forget_process()
        self.tells_control = True

    def on_resume(self, *, was_up: bool) -> None:
        """Begin after the log was read again; ``was_up`` if the present process has come up.

        Replies read in the log may be those of an earlier process, so they prove nothing.
        """
        self._forget_process()
        if was_up:
            self.heard_iopub = True
            self._on_answer()

    def _forget_process(self) -> None:
        self.heard_iopub = False
        self._answered.clear()
        self._reachable.clear()
        self._hearing_seconds = HEARD_SECONDS

    def send(self, channel: str, msg_type: str, content: dict[str, Any]) -> str:
        """Send a request. Returns its msg_id; empty if there is no process, or no room for it."""
        header, parts = make_parts(msg_type, content, self.session)
        if not self._line.connected:
            return ""
        sent = self._line.send(ClientMessage(channel, header, parts), self.session)
        return header.msg_id if sent else ""

    def probe(self, *, on_control: bool = True) -> None:
        """Send a ``kernel_info_request`` on shell, and on control, which a busy kernel answers."""
        if on_control:
            self.send("control", "kernel_info_request", {})
        self.send("shell", "kernel_info_request", {})

    def wake_main_shell(self) -> None:
        """Send a request that makes a sleeping main shell look at its socket (`InterruptWatch`)."""
        self.send("shell", "kernel_info_request", {})

    def ask_on_control(self) -> str:
        """Send a request on control. Returns its msg_id; empty if it cannot be sent."""
        return self.send("control", "kernel_info_request", {})

    async def ask(
        self, msg_type: str, content: dict[str, Any], seconds: float, channel: str = "shell"
    ) -> bytes | None:
        """Send a request and return the content of its reply; None if none comes in ``seconds``.

        Clients see nothing of the request but output that a thread of the kernel prints meanwhile,
        of which the kernel takes the request for the parent.
        """
        header, parts = make_parts(msg_type, content, self.session)
        if not self._line.connected:
            return None
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        # Before the request is sent; the reply is read in a later turn of the loop in any case. A
        # reply that comes after the timeout finds no future, and is dropped.
        self._asked[header.msg_id] = answer
        try:
            # If the line has no room, the kernel takes no requests just now. Every caller takes the
            # missing answer for just that.
            self._line.send(ClientMessage(channel, header, parts), self.session)
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            return None
        finally:
            del self._asked[header.msg_id]

    async def catch_up(self) -> None:
        """Return when all messages that the kernel has published by now have been read.

        A kernel publishes over one socket, in order: when it goes idle for a request sent now, all
        that it published before has come. After `BEHIND_SECONDS` without that status this returns
        too, and the kernel is taken for one that publishes no statuses for control.
        """
        msg_id = self.ask_on_control()
        if not msg_id:
            return
        # The idle status cannot have been read before this line: nothing is suspended since `send`.
        gone_idle = self._going_idle[msg_id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(BEHIND_SECONDS):
                await gone_idle
        except TimeoutError:
            self.tells_control = False
        finally:
            del self._going_idle[msg_id]

    def on_idle(self, msg_id: str) -> None:
        """Wake `catch_up`, if the kernel has gone idle for its request."""
        gone_idle = self._going_idle.get(msg_id)
        if gone_idle is not None and not gone_idle.done():
            gone_idle.set_result(None)

    async def answers_on_shell(self, seconds: float) -> bool:
        """Whether the main shell answers a request within ``seconds``."""
        return await self.ask("kernel_info_request", {}, seconds) is not None

    async def subshells(self) -> Collection[str] | None:
        """The ids of the kernel's subshells [JEP 91]; None if it does not answer."""
        answer = await self.ask("list_subshell_request", {}, SUBSHELL_SECONDS, "control")
        try:
            return msgspec.json.decode(answer or b"{}", type=_SubshellList).subshell_id
        except (msgspec.MsgspecError, RecursionError):
            return None

    @property
    def implementation(self) -> str:
        """The name in the kernel's ``kernel_info_reply``; empty if that is not known."""
        try:
            return msgspec.json.decode(self.kernel_info or b"{}", type=_Info).implementation
        except (msgspec.MsgspecError, RecursionError):
            return ""

    async def reach(self, seconds: float, *, on_control: bool = True) -> bool:
        """Ask a kernel that comes up (`probe`); whether it has answered, and was heard on iopub.

        Both are needed: the sockets connect one by one, and output of code that runs before iopub
        is connected would be lost. Returns False after ``seconds`` without an answer. A kernel that
        has answered and was not heard gets less time (`HEARD_SECONDS`): it sends no welcome, and
        published its status before the keeper's subscription reached it. Asked again, it publishes
        another.
        """
        self.probe(on_control=on_control)
        try:
            async with asyncio.timeout(seconds):
                await self._answered.wait()
        except TimeoutError:
            return False
        try:
            async with asyncio.timeout(min(self._hearing_seconds, seconds)):
                await self._reachable.wait()
        except TimeoutError:
            self._hearing_seconds *= 2
            return False
        return True

    def on_reply(self, message: Message) -> None:
        """Take note of a reply of the kernel, to a request of the server or of any client."""
        answer = self._asked.get(message.parent.msg_id) if self._asked else None
        if answer is not None and not answer.done():  # its time may be over in this very turn
            answer.set_result(bytes(message.part(3)))
        if message.header.msg_type == "kernel_info_reply":
            self.kernel_info = bytes(message.part(3))
            self._on_answer()

    def on_iopub(self) -> None:
        """Take note that a message of the kernel has come on iopub."""
        if not self.heard_iopub:
            self.heard_iopub = True
            self._look_reachable()

    def _on_answer(self) -> None:
        self._answered.set()
        self._look_reachable()

    def _look_reachable(self) -> None:
        if self.answered and self.heard_iopub:
            self._reachable.set()


class _SubshellList(msgspec.Struct):
    subshell_id: list[str] | None = None  # so it is called, although it is a list [JEP 91]


class _Info(msgspec.Struct):
    implementation: str = ""
