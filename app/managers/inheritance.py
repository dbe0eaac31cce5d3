"""What a kernel was asked by another process of the server, before this one's time.

Its answers may have been lost with that process. Each request is given its end here, as soon as it
is known that the kernel has done with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

from app.managers.channels import Channels
from app.managers.execution import Execution
from app.managers.execution_tracker import ExecutionTracker
from app.managers.log import MessageLog
from app.managers.made_up import reply_made_of_iopub
from app.managers.requests import PendingRequests, Request
from app.protocol.messages import ClientMessage, Header, Message, reply_type

__all__ = ["Inheritance"]

ON_CONTROL: Final = frozenset(
    f"{what}_request"
    for what in (
        *("shutdown", "interrupt", "debug"),
        *("create_subshell", "delete_subshell", "list_subshell"),  # [JEP 91]
    )
)

Content = dict[str, Any]


class Inheritance:
    """Of one kernel: its pending requests and executions are those of its `Traffic`.

    ``finish`` ends a request, with the content of its reply if there is one.
    """

    def __init__(
        self,
        log: MessageLog,
        requests: PendingRequests,
        tracker: ExecutionTracker,
        finish: Callable[[Request, Content | None], None],
    ) -> None:
        self._log = log
        self._requests = requests
        self._tracker = tracker
        self._finish = finish
        self._ids: set[str] = set()
        self._sockets: Channels | None = None
        self._unsure: set[Execution] = set()  # the last process was just sending them
        self.has_heard_all = False
        """Whether nothing that the kernel has published since escaped us."""
        self.is_open = False
        """Whether the kernel may still begin with a request that nobody here knows."""

    def take(self, executions: Iterable[Execution]) -> None:
        """These were known to the other process, in this order."""
        self.is_open = True
        for execution in executions:
            self._tracker.put_back(execution)
            if execution.sent and not execution.ended and execution.header:
                if execution.held:
                    self._unsure.add(execution)
                header = Header(execution.id, "execute_request", execution.session)
                self._add(ClientMessage("shell", header, [execution.header]), execution.session)

    def _add(self, request: ClientMessage, owner: str | None) -> None:
        self._ids.add(request.header.msg_id)
        self._requests.add(request, owner or "")

    def hear(self, sockets: Channels) -> None:
        """Over these come answers to what was asked before our time; they are closed at the end."""
        self._sockets = sockets

    def meet(self, message: Message) -> None:
        """The kernel begins with a request that is not known; it told us in its status."""
        parent = message.parent
        if reply_type(parent.msg_type) is None or self._tracker.get(parent.msg_id) is not None:
            return
        channel = "control" if parent.msg_type in ON_CONTROL else "shell"
        request = ClientMessage(channel, parent, [bytes(message.part(1))])
        self._add(request, parent.session)
        if parent.msg_type == "execute_request":
            self._tracker.on_request(request, parent.session or "")

    def has(self, execution: Execution) -> bool:
        """Whether its reply may come over the sockets of that other process."""
        return execution.id in self._ids

    def reply_to(self, execution: Execution) -> Content | None:
        """The reply that it must have had, made of what the kernel published; None if not ours."""
        if not self.has(execution):
            return None
        reply = reply_made_of_iopub(self._log, execution)
        execution.on_reply(self._log.end, reply["status"], reply.get("execution_count"))
        return reply

    def settle(self, *, all_of_them: bool) -> None:
        """Answer what the kernel has done with; its own answer was lost.

        ``all_of_them``: it has nothing left of those requests.
        """
        for request in list(self._requests):
            if request.msg_id not in self._ids or request.replied:
                continue
            if request.idle or all_of_them:
                self._requests.discard(request)
                self._end(request)
        if all_of_them:
            self._ids.clear()
            self.close()

    def _was_lost(self, execution: Execution) -> bool:
        """Whether its request never reached the kernel, and can be sent as if it had just come.

        Not if it was cancelled, or something that its session asked for later has been sent. What a
        subshell has before it nothing tells.
        """
        sure = execution in self._unsure and self.has_heard_all and execution.on_main_shell
        if not sure or execution.cancel_asked:
            return False
        known = list(self._tracker)
        return not any(
            later.sent and later.session == execution.session and later not in self._unsure
            for later in known[known.index(execution) :]
        )

    def _end(self, request: Request) -> None:
        execution = self._tracker.get(request.msg_id)
        if execution is None or execution.ended:
            self._finish(request, None)
        elif request.idle or execution.running:
            self._finish(request, self.reply_to(execution))
            self._tracker.finish(execution)
        elif self._was_lost(execution):
            self._tracker.take_back(execution)
        else:
            reason = (
                "The server that was asked for it ended before the kernel had it, and its request "
                "was not kept: it was being sent, or is more than is kept (1 MiB, 16 MiB a kernel)"
            )
            self._tracker.give_up(execution, reason, never_ran=True)
            self._finish(request, None)

    def close(self) -> None:
        """Nothing of before can come any more."""
        self.is_open = False
        self._unsure.clear()
        if self._sockets is not None:
            self._sockets.close()
            self._sockets = None
