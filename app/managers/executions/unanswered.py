"""Requests for which a kernel never does what the protocol asks for: reply, or even begin."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from ...keeper.requests import Request
from .execution import Execution, ExecutionState

__all__ = ["Overdue", "Subshells", "Unanswered"]

REPLY_SECONDS: Final = 5.0
"""How long after its idle status a request waits for its reply, which comes over another socket."""

OVERDUE_SECONDS: Final = 0.1
"""How long after its idle status an execution waits for its reply before the kernel is asked
something else."""

BEGIN_SECONDS: Final = (5.0, 60.0)
"""How long an execution may wait in a subshell before the kernel is asked whether it has that
subshell, and how long, at the most, between two such questions."""


class Unanswered:
    """The requests of one kernel that it has gone idle for without a reply.

    ``end`` is called for each whose reply does not come. One timer serves all.
    """

    def __init__(self, end: Callable[[Request], None]) -> None:
        self._end = end
        self._waiting: deque[tuple[float, Request]] = deque()  # and until when, by the loop's clock
        self._plan: asyncio.TimerHandle | None = None

    def add(self, request: Request) -> None:
        """The kernel has gone idle for this request, and has not replied yet."""
        loop = asyncio.get_running_loop()
        self._waiting.append((loop.time() + REPLY_SECONDS, request))
        if self._plan is None:
            self._plan = loop.call_later(REPLY_SECONDS, self._look)

    def clear(self) -> None:
        """The process is gone, and its requests have been taken care of."""
        self._waiting.clear()
        if self._plan is not None:
            self._plan.cancel()
            self._plan = None

    def _look(self) -> None:
        loop, waiting = asyncio.get_running_loop(), self._waiting
        while waiting and waiting[0][0] <= loop.time():
            self._end(waiting.popleft()[1])
        self._plan = loop.call_at(waiting[0][0], self._look) if waiting else None


class Overdue:
    """Executions of one kernel that lack their replies although it has gone idle for them.

    ipykernel gives up a request, without a reply, when it is interrupted between its code and the
    end of its handler, or just before the code. A kernel replies in order over one socket: once it
    has answered a later question, it will not reply to what came before. Where it does not answer,
    nothing is ended here.

    ``ask`` tells whether the kernel answers such a question in so many seconds. ``end`` is called
    for each execution whose reply will not come.
    """

    def __init__(
        self, ask: Callable[[float], Awaitable[bool]], end: Callable[[Execution], None]
    ) -> None:
        self._ask = ask
        self._end = end
        self._waiting: list[Execution] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, execution: Execution) -> None:
        """The kernel has gone idle for this execution of its main shell, and has not replied."""
        self._waiting.append(execution)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._look(), name="overdue")

    def clear(self) -> None:
        """The process is gone, or is somebody else's from now on."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _look(self) -> None:
        while self._waiting:
            await asyncio.sleep(OVERDUE_SECONDS)
            lacking = [one for one in self._waiting if _lacks_reply(one)]
            self._waiting.clear()
            if lacking and await self._ask(REPLY_SECONDS):
                for execution in lacking:
                    if _lacks_reply(execution):
                        self._end(execution)
        self._task = None


class Behind:
    """Executions of one kernel that lack their idle statuses although it has replied.

    Some kernels never send them. But replies overtake output, and a large message is on its way
    for seconds in which nothing is seen of it. What a kernel publishes comes in order: once it has
    gone idle for a later question, nothing follows of what came before.

    ``ask`` returns when that is so, or when the kernel does not tell. ``end`` is called for each
    execution whose idle status has not come until then.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[None]], end: Callable[[Execution], None]
    ) -> None:
        self._ask = ask
        self._end = end
        self._waiting: list[Execution] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, execution: Execution) -> None:
        """The kernel has replied to this execution, and has been silent since."""
        self._waiting.append(execution)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._look(), name="behind")

    def clear(self) -> None:
        """The process is gone, or is somebody else's from now on."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _look(self) -> None:
        while self._waiting:
            asked_for, self._waiting = self._waiting, []
            await self._ask()
            for execution in asked_for:
                if not (execution.idle or execution.ended):
                    self._end(execution)
        self._task = None


def _lacks_reply(execution: Execution) -> bool:
    return execution.reply_status is None and not execution.ended


class Subshells:
    """Executions of one kernel that wait in a subshell [JEP 91], which may be gone.

    ipykernel up to 7.1 drops a request for a subshell that it does not have, without a word. A
    kernel that knows no subshells runs such a request, and cannot be asked; nothing is ended then.
    ``ask`` returns the subshells that the kernel has, or None if it does not tell. ``end`` is
    called for an execution and the subshell that it waits for in vain.
    """

    def __init__(
        self,
        ask: Callable[[], Awaitable[Collection[str] | None]],
        end: Callable[[Execution, str], None],
    ) -> None:
        self._ask = ask
        self._end = end
        self._waiting: dict[Execution, str] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, execution: Execution, subshell_id: str) -> None:
        """This execution is on its way to a subshell."""
        self._waiting[execution] = subshell_id
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._look(), name="subshells")

    def clear(self) -> None:
        """The process is gone, or is somebody else's from now on."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _look(self) -> None:
        pause, longest = BEGIN_SECONDS
        while self._waiting:
            await asyncio.sleep(pause)
            self._forget_begun()
            # Those that come while the kernel is asked may wait in a subshell that is newer.
            asked_for = dict(self._waiting)
            known = await self._ask() if asked_for else None
            self._forget_begun()
            for execution, subshell_id in asked_for.items():
                if known is not None and subshell_id not in known and execution in self._waiting:
                    del self._waiting[execution]
                    self._end(execution, subshell_id)
            pause = min(2 * pause, longest)
        self._task = None

    def _forget_begun(self) -> None:
        for execution in [*self._waiting]:
            if execution.state is not ExecutionState.QUEUED:
                del self._waiting[execution]
