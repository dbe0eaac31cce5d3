"""Waiting for output that comes after the end of its execution.

A thread of ipykernel reads what child processes and C code write to file descriptors. It may read
that after the idle status, and publishes it up to 0.2 s later. If other code has begun by then, the
output is published with that code as its parent. A request on control makes ipykernel publish at
once all output that was read, and leaves the parent of new output unchanged; a request on shell
would become the parent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from .execution import Execution

__all__ = ["Stragglers"]

QUIET_SECONDS: Final = 0.02
"""How many seconds that thread gets to read before the first request, if output is expected."""

ANSWER_SECONDS: Final = 0.03
"""How many seconds the idle status of a request is awaited, so that a kernel which is at work, or
does not answer, delays an end only little."""

ROUNDS: Final = 2
"""How many requests are sent: the second is for output that was read during the first."""


class Stragglers:
    """Complete executions of one kernel that may still have output coming.

    ``ask`` sends a request on control and returns its id; empty if it cannot be sent. ``finish`` is
    called once for each execution: when the kernel has gone idle for the requests, or when
    `ANSWER_SECONDS` are over, whichever is first.
    """

    def __init__(self, ask: Callable[[], str], finish: Callable[[Execution], None]) -> None:
        self._ask = ask
        self._finish = finish
        self._plans: dict[Execution, asyncio.TimerHandle] = {}
        # By the id of a request: its execution, and how many requests are to follow.
        self._asked: dict[str, tuple[Execution, int]] = {}

    def wait_for(self, execution: Execution, *, quiet: bool) -> None:
        """Finish an execution soon; ``quiet`` if late output is expected: then a pause is first."""
        if quiet:
            self._plan(execution, QUIET_SECONDS, self._begin)
        else:
            self._begin(execution)

    def on_idle(self, msg_id: str) -> None:
        """Go on with an execution: the kernel has gone idle for a request of the server."""
        if msg_id not in self._asked:  # its time was over first, or it is no such request
            return
        # The timer of `_go_on` and this both end the execution: the first of them takes it out of
        # the plans, and the other then finds nothing.
        execution, rounds = self._asked.pop(msg_id)
        if execution in self._plans:
            if rounds:
                self._go_on(execution, rounds)
            else:
                self._end(execution)

    def clear(self) -> None:
        """Finish all executions: the process is gone, and no more output comes."""
        for execution in [*self._plans]:
            self._end(execution)

    def drop(self) -> None:
        """Forget all executions without finishing them: the process is another server's now."""
        for plan in self._plans.values():
            plan.cancel()
        self._plans.clear()
        self._asked.clear()

    def _begin(self, execution: Execution) -> None:
        self._go_on(execution, ROUNDS)

    def _go_on(self, execution: Execution, rounds: int) -> None:
        msg_id = self._ask()
        if msg_id:
            self._asked[msg_id] = execution, rounds - 1
            self._plan(execution, ANSWER_SECONDS, self._end)
        else:
            self._end(execution)

    def _plan(
        self, execution: Execution, seconds: float, then: Callable[[Execution], None]
    ) -> None:
        if execution in self._plans:
            self._plans[execution].cancel()
        loop = asyncio.get_running_loop()
        self._plans[execution] = loop.call_later(seconds, then, execution)

    def _end(self, execution: Execution) -> None:
        # Idle statuses that come later find nothing (`on_idle`). `finish` is called last: it may
        # have the next execution sent, whose end may call this again.
        plan = self._plans.pop(execution, None)
        if plan is not None:
            plan.cancel()
        for msg_id in [one for one, (other, _) in self._asked.items() if other is execution]:
            del self._asked[msg_id]
        self._finish(execution)
