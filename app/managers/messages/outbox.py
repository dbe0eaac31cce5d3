"""Requests on their way to a kernel: what it does not take yet waits here, in order and bounded."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Final

from ...protocol.messages import ClientMessage

__all__ = ["Outbox"]

FAILED_SECONDS: Final = 1.0
"""How long requests wait, at the most, for a failed execution to be over; and how often to look
whether one that was interrupted has ended without a word."""

ABORT_SECONDS: Final = 0.005
"""How long after that a kernel may still abort what comes: ipykernel takes one more turn."""


class Outbox:
    """Of one kernel. Nothing leaves it before `open`; ``max_bytes`` bound what waits.

    The bound is not kept here: whoever sends more looks at `has_room`, or waits for `room`.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._waiting: dict[str, deque[tuple[ClientMessage, str]]] = {}  # by lane
        self._room = asyncio.Event()
        self._room.set()
        self._transmit: Callable[[ClientMessage, str], bool] | None = None
        # The executions for whose end requests wait: it has failed, or is being interrupted.
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
        """Whether more may be sent at once."""
        return self._room.is_set()

    async def room(self) -> None:
        """Return when more may be sent: what waits is below its bound.

        Has no bound of its own: it ends when the kernel takes its requests, or ends.
        """
        await self._room.wait()

    def open(self, transmit: Callable[[ClientMessage, str], bool]) -> None:
        """The kernel takes requests: send what has waited.

        ``transmit`` sends one for its owner, and returns False when it is not taken now.
        """
        self._transmit = transmit
        self.flush()

    def close(self) -> None:
        """The process is gone, and with it what waited for it."""
        self._transmit = None
        self._forget_failure()
        self._waiting.clear()
        self._bytes = 0
        self._room.set()

    def send(self, message: ClientMessage, owner: str) -> bool:
        """Send a session's request, after those before it; False if it waits."""
        lane = _lane(message)
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
        """Count a request that waits, here or elsewhere, until it is discharged, or `close`."""
        self._bytes += message.size
        if self._bytes > self._max_bytes:
            self._room.clear()

    def discharge(self, message: ClientMessage) -> None:
        """A request that waited elsewhere waits there no more."""
        self._bytes -= message.size
        if self._bytes <= self._max_bytes:
            self._room.set()

    def flush(self) -> None:
        """Send what waits, as far as the sockets take it."""
        if self._transmit is None:
            return
        for waiting in self._waiting.values():
            while waiting and self._sent(*waiting[0]):
                self._bytes -= waiting.popleft()[0].size
        if self._bytes <= self._max_bytes:
            self._room.set()

    def _sent(self, message: ClientMessage, owner: str) -> bool:
        if self._transmit is None or self._is_held(message):
            return False
        return self._transmit(message, owner)

    # After an error, and after an interrupt

    def _is_held(self, message: ClientMessage) -> bool:
        if _lane(message) != "shell":
            return False
        # Between an interrupt and its error may lie long; what is no code can go meanwhile.
        is_code = message.header.msg_type == "execute_request"
        return self._failed is not None or (self._interrupted is not None and is_code)

    def on_interrupt(self, msg_id: str, goes_on: Callable[[], bool]) -> None:
        """Keep code that clients send from now on until this execution is over.

        The interrupt becomes an error there, at which the kernel aborts what it finds in its queue.
        Who interrupts what runs, and then sends code, means that code to run. ``goes_on`` tells
        whether the execution is still under way.
        """
        self._interrupted, self._goes_on = msg_id, goes_on
        if self._failed_plan is None:
            self._plan_after_failure(FAILED_SECONDS)

    def on_error(self, msg_id: str) -> None:
        """Keep what clients send from now on until the kernel has done with what failed.

        It aborts what it finds in its queue then. A client that has seen the error, and sends more
        code at once, is faster than the kernel; but it means that code to run.
        """
        self._failed = msg_id
        self._plan_after_failure(FAILED_SECONDS)

    def on_idle(self, msg_id: str) -> None:
        """The kernel is done with a request; if it is the one that failed, others may go soon."""
        if msg_id in (self._failed, self._interrupted):
            self._goes_on = lambda: False
            self._plan_after_failure(ABORT_SECONDS)

    def _plan_after_failure(self, seconds: float) -> None:
        if self._failed_plan is not None:
            self._failed_plan.cancel()
        self._failed_plan = asyncio.get_running_loop().call_later(seconds, self._after_failure)

    def _after_failure(self) -> None:
        interrupted, goes_on = self._interrupted, self._goes_on
        self._forget_failure()
        if interrupted is not None and goes_on():
            self.on_interrupt(interrupted, goes_on)
        self.flush()

    def _forget_failure(self) -> None:
        self._failed = self._interrupted = None
        self._goes_on = lambda: False
        if self._failed_plan is not None:
            self._failed_plan.cancel()
            self._failed_plan = None


def _lane(message: ClientMessage) -> str:
    """What a kernel takes in order: a channel; on shell the main shell, apart from subshells."""
    is_for_subshell = message.channel == "shell" and message.header.subshell_id is not None
    return "subshells" if is_for_subshell else message.channel
