"""Executions that have one of the two messages that end them, and wait for the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from ..log.entries import Gap, Position
from ..log.message_log import MessageLog
from .execution import Execution

__all__ = ["IDLE_SECONDS", "REPLY_SECONDS", "Incomplete"]

IDLE_SECONDS: Final = 3.0
"""How many seconds after its reply, and its last output, an execution waits for its idle status.
Some kernels never send one. The wait is long as the reply comes over another socket than the
output, and may come seconds before the last of much output."""

REPLY_SECONDS: Final = 5.0
"""How many seconds after its idle status an execution waits for its reply, which tells how it has
ended."""

MESSAGES_LOOKED_AT: Final = 256
"""How many messages are read at a time to look for output of an execution."""

LATE_SECONDS: Final = 0.5
"""A timer that fires so many seconds late shows that the loop was held up, perhaps by reading a
large message: there may be more messages to read."""


class _Waiting(NamedTuple):
    """An execution that lacks one of the two messages that end it: the reply or the idle status."""

    due: float  # by the loop's clock
    seconds: float
    seen: int  # the log's next number when the wait began
    execution: Execution


class Incomplete:
    """The executions of one kernel that lack their reply or their idle status.

    ``finish`` ends an execution for which the kernel is idle, and to which no reply has come.
    ``on_silent`` is called with one to which the kernel has replied, and which is silent since: it
    has neither its idle status nor further output.
    """

    def __init__(
        self,
        log: MessageLog,
        finish: Callable[[Execution], None],
        on_silent: Callable[[Execution], None],
    ) -> None:
        self._log = log
        self._finish = finish
        self._on_silent = on_silent
        self._waiting: list[_Waiting] = []
        self._plan: asyncio.TimerHandle | None = None

    def add(self, execution: Execution, seconds: float) -> None:
        """Plan to end an execution in ``seconds`` without the message that it lacks.

        Some kernels never send that message.
        """
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        self._waiting.append(_Waiting(due, seconds, self._log.next_seq, execution))
        self._plan_for(due)

    def _plan_for(self, due: float) -> None:
        # Waits differ in length: one that begins later may be over first.
        if self._plan is None or due < self._plan.when():
            if self._plan is not None:
                self._plan.cancel()
            self._plan = asyncio.get_running_loop().call_at(due, self._look)

    def _look(self) -> None:
        """End the executions that have waited long enough. One timer serves all of a kernel."""
        now = asyncio.get_running_loop().time()
        self._plan = None
        # Taken out first: an end can have other executions wait (`add`), which are
        # appended to the new list.
        waiting, self._waiting = self._waiting, []
        for item in waiting:
            if item.execution.ended:
                continue
            if item.due > now:
                self._waiting.append(item)
            elif now - item.due > LATE_SECONDS or self._has_said_more(item):
                # A late timer fires before messages that have arrived are read: the missing one
                # may be among them, so nothing can be concluded.
                self.add(item.execution, item.seconds)
            elif item.execution.idle:
                self._finish(item.execution)
            else:
                self._on_silent(item.execution)
        if self._waiting:
            self._plan_for(min(item.due for item in self._waiting))

    def _has_said_more(self, item: _Waiting) -> bool:
        """Whether more output of an execution that lacks its idle status has come meanwhile."""
        log = self._log
        if item.execution.idle:
            return False
        place = log.place_after(item.seen - 1)
        while place.cursor < log.next_seq:
            entries = log.read(place, MESSAGES_LOOKED_AT, 2**62)
            if isinstance(entries, Gap):
                return True
            if any(entry.message.parent.msg_id == item.execution.id for entry in entries):
                return True
            last = entries[-1]
            place = Position(last.seq + 1, last.offset + last.size)
        return False

    def clear(self) -> None:
        """Forget all executions: their process is gone."""
        self._waiting.clear()
        if self._plan is not None:
            self._plan.cancel()
            self._plan = None
