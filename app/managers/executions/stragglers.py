"""Waiting for output that comes behind the end of its execution.

What child processes and C code write to a descriptor is read by a thread of ipykernel's, which may
come to it behind the idle status, and publishes it 0.2 s later; when other code has begun by then,
that is taken for its origin. A request on control has all that was read published at once, and does
not change to what new output belongs, as a request on shell would.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from .execution import Execution

__all__ = ["Stragglers"]

QUIET_SECONDS: Final = 0.02
"""How long that thread gets to read, where it probably has something to read."""

ANSWER_SECONDS: Final = 0.03
"""How long a request is waited for: a kernel that is at work, or does not answer, delays little."""

ROUNDS: Final = 2
"""Requests: the second is for what was read during the first."""


class Stragglers:
    """Executions of one kernel of which all is known but the last of their output.

    ``ask`` sends such a request, and returns its id, or nothing if it cannot. ``finish`` is called
    for each execution, once: when the kernel has answered, or soon.
    """

    def __init__(self, ask: Callable[[], str], finish: Callable[[Execution], None]) -> None:
        self._ask = ask
        self._finish = finish
        self._plans: dict[Execution, asyncio.TimerHandle] = {}
        self._asked: dict[str, tuple[Execution, int]] = {}  # and how many are to follow

    def wait_for(self, execution: Execution, *, quiet: bool) -> None:
        """Finish it soon; ``quiet`` if there probably is something that comes late."""
        if quiet:
            self._plan(execution, QUIET_SECONDS, self._begin)
        else:
            self._begin(execution)

    def on_idle(self, msg_id: str) -> None:
        """The kernel has done with a request of the server's."""
        if msg_id not in self._asked:
            return
        execution, rounds = self._asked.pop(msg_id)
        if execution in self._plans:
            if rounds:
                self._go_on(execution, rounds)
            else:
                self._end(execution)

    def clear(self) -> None:
        """Nothing more will come from this process: finish all."""
        for execution in [*self._plans]:
            self._end(execution)

    def drop(self) -> None:
        """Wait for nothing, and finish nothing: the process is somebody else's from now on."""
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
        plan = self._plans.pop(execution, None)
        if plan is not None:
            plan.cancel()
        for msg_id in [one for one, (other, _) in self._asked.items() if other is execution]:
            del self._asked[msg_id]
        self._finish(execution)
