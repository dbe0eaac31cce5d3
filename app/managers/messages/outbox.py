"""Requests that one kernel does not take yet: they wait here, in order and bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final

from ...protocol.messages import ClientMessage

__all__ = ["Outbox"]

FAILED_SECONDS: Final = 1.0
"""How many seconds requests wait, at the most, for a failed execution to be over; and how often to
look whether an interrupted execution has ended without an idle status."""

ABORT_SECONDS: Final = 0.005
"""How many seconds after a failed execution's idle status requests still wait. ipykernel takes one
more turn of its event loop, in which it aborts the requests that it finds in its queue."""


class Outbox:
    """The requests that wait for one kernel. None leaves before `open`.

    ``max_bytes`` is how much should wait. `send` does not refuse more; senders look at `has_room`,
    or wait for `room`, before they read another request from their client.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        # Requests with the sessions that own them, by lane (see `_lane`).
        self._waiting: dict[str, deque[tuple[ClientMessage, str]]] = {}
        self._room = asyncio.Event()
        self._room.set()
        self._transmit: Callable[[ClientMessage, str], bool] | None = None
        # The ids of the execution that has failed, and of the one that is being interrupted, if
        # requests wait until it is over.
        self._failed: str | None = None
        self._interrupted: str | None = None
        self._goes_on: Callable[[], bool] = lambda: False
        self._failed_plan: asyncio.TimerHandle | None = None

    @property
    def is_open(self) -> bool:
        """Whether the kernel takes requests."""
        return self._transmit is not None

    @property
    def has_room(self) -> bool:
        """Whether the bytes of waiting requests are below their bound."""
        return self._room.is_set()

    async def room(self) -> None:
        """Return when the bytes of waiting requests are below their bound.

        This has no timeout: it returns when the kernel takes requests, or when its process ends.
        """
        await self._room.wait()

    def open(self, transmit: Callable[[ClientMessage, str], bool]) -> None:
        """Send the requests that have waited: the kernel takes requests from now on.

        ``transmit`` sends one request of a session, and returns False if it is not taken now.
        """
        self._transmit = transmit
        self.flush()

    def close(self) -> None:
        """Drop the requests that wait: their process is gone. The caller ends them."""
        self._transmit = None
        self._forget_failure()
        # The requests that wait elsewhere stay charged: `discharge` is still to come for each.
        self._bytes -= sum(message.size for message in self.waiting)
        self._waiting.clear()
        # Even if those alone exceed the bound: a sender that waits for room must see that the
        # process is gone. The next request that waits closes the room again.
        self._room.set()

    def send(self, message: ClientMessage, owner: str) -> bool:
        """Send a session's request, behind the earlier ones of its lane; False if it waits."""
        lane = _lane(message)
        # While any request of the lane waits, none overtakes it, even if the kernel took it now.
        if not self._waiting.get(lane) and self._sent(message, owner):
            return True
        self._waiting.setdefault(lane, deque()).append((message, owner))
        self.charge(message)
        return False

    def has(self, msg_id: str) -> bool:
        """Whether the request with this id waits."""
        return any(message.header.msg_id == msg_id for message in self.waiting)

    @property
    def waiting(self) -> Iterator[ClientMessage]:
        """The requests that wait."""
        return (message for message, _ in chain.from_iterable(self._waiting.values()))

    def charge(self, message: ClientMessage) -> None:
        """Count the bytes of a request that waits here or, until its `discharge`, elsewhere.

        `Submissions` charges the requests that it holds for the kernel's next process.
        """
        self._bytes += message.size
        if self._bytes > self._max_bytes:
            self._room.clear()

    def discharge(self, message: ClientMessage) -> None:
        """Count no longer a request that has waited elsewhere."""
        self._bytes -= message.size
        if self._bytes <= self._max_bytes:
            self._room.set()

    def flush(self) -> None:
        """Send the requests that wait, lane by lane, as far as they are taken."""
        # To transmit is to write to the link's buffer: nothing comes back in the same turn, so that
        # no request is added, and no lane, while this goes through them.
        if self._transmit is None:
            return
        for waiting in self._waiting.values():
            while waiting and self._sent(*waiting[0]):
                self._bytes -= waiting.popleft()[0].size
        if self._bytes <= self._max_bytes:
            self._room.set()

    def _sent(self, message: ClientMessage, owner: str) -> bool:
        # A request counts as sent when the line has it. If the keeper is lost before it sends the
        # request on, `RequestEnds.send_again` finds that the log lacks its header.
        if self._transmit is None or self._is_held(message):
            return False
        return self._transmit(message, owner)

    # After an error, and after an interrupt

    def _is_held(self, message: ClientMessage) -> bool:
        if _lane(message) != "shell":
            return False
        # A long time may pass between an interrupt and its error. Other requests than code (a
        # completion, say) need not wait: if the kernel aborts one, no code is lost.
        is_code = message.header.msg_type == "execute_request"
        return self._failed is not None or (self._interrupted is not None and is_code)

    def on_interrupt(self, msg_id: str, goes_on: Callable[[], bool]) -> None:
        """Hold back code that clients send from now on until this execution is over.

        The race: the interrupt becomes an error of the execution, and at an error the kernel aborts
        all code that it finds in its queue. A client that interrupts an execution, and then sends
        code, means that code to run; sent at once, it would be in the queue when the error comes.
        ``goes_on`` tells whether the execution is still under way.
        """
        self._interrupted, self._goes_on = msg_id, goes_on
        # A timer that runs stays: at its end it releases what a failure holds back, and runs once
        # more for the interrupt. So a client that interrupts again and again delays no request.
        if self._failed_plan is None:
            self._plan_after_failure(FAILED_SECONDS)

    def on_error(self, msg_id: str) -> None:
        """Hold back requests to the main shell until the kernel is done with a failed execution.

        The race: the kernel publishes the error, and only then aborts the requests that it finds in
        its queue. A client that sends more code when it sees the error is faster than the kernel,
        and means that code to run.
        """
        self._failed = msg_id
        self._plan_after_failure(FAILED_SECONDS)

    def on_idle(self, msg_id: str) -> None:
        """Let requests go soon if the kernel is done with the one that failed or was interrupted.

        A timer lets them go: they go even if the idle status never comes.
        """
        if msg_id in (self._failed, self._interrupted):
            self._goes_on = lambda: False
            self._plan_after_failure(ABORT_SECONDS)

    def _plan_after_failure(self, seconds: float) -> None:
        if self._failed_plan is not None:
            self._failed_plan.cancel()
        self._failed_plan = asyncio.get_running_loop().call_later(seconds, self._after_failure)

    def _after_failure(self) -> None:
        # An interrupt's error may come long after it, when the code handles the signal late. So the
        # end of the time does not release code while the interrupted execution goes on.
        interrupted, goes_on = self._interrupted, self._goes_on
        self._forget_failure()
        if interrupted is not None and goes_on():  # hold code back for another while
            self.on_interrupt(interrupted, goes_on)
        self.flush()

    def _forget_failure(self) -> None:
        self._failed = self._interrupted = None
        self._goes_on = lambda: False
        if self._failed_plan is not None:
            self._failed_plan.cancel()
            self._failed_plan = None


def _lane(message: ClientMessage) -> str:
    """The lane of a request: requests of one lane leave in order.

    A lane is a channel; of shell, the main shell and the subshells [JEP 91] are lanes of their own.
    """
    is_for_subshell = message.channel == "shell" and message.header.subshell_id is not None
    return "subshells" if is_for_subshell else message.channel
