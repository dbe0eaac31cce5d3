"""Requests to which a kernel does not reply, or with which it does not even begin."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from ...keeper.requests import Request
from .execution import Execution, ExecutionState

__all__ = ["Behind", "Dropped", "Overdue", "Subshells", "Unanswered"]

REPLY_SECONDS: Final = 5.0
"""How many seconds after its idle status a request waits for its reply, which comes over another
socket, and so may come later."""

OVERDUE_SECONDS: Final = 0.1
"""How many seconds after its idle status an execution waits for its reply before the kernel is sent
another request, to find out whether it still replies."""

BEGIN_SECONDS: Final = (5.0, 60.0)
"""How many seconds an execution may wait in a subshell before the kernel is asked whether it has
that subshell; and the longest pause between two such questions."""


DROPPED_SECONDS: Final = (5.0, 60.0)
"""How many seconds an execution may wait at a main shell that runs nothing before the kernel is
asked whether it still replies; and the longest pause between two looks."""


class Unanswered:
    """The requests of one kernel for which it has gone idle without a reply.

    ``end`` is called with each request after `REPLY_SECONDS`; if the reply has come by then, it
    does nothing. One timer serves all requests.
    """

    def __init__(self, end: Callable[[Request], None]) -> None:
        self._end = end
        # Requests, and until when each waits for its reply, by the loop's clock.
        self._waiting: deque[tuple[float, Request]] = deque()
        self._plan: asyncio.TimerHandle | None = None

    def add(self, request: Request) -> None:
        """Watch a request for which the kernel has gone idle, and not replied yet."""
        loop = asyncio.get_running_loop()
        self._waiting.append((loop.time() + REPLY_SECONDS, request))
        if self._plan is None:
            self._plan = loop.call_later(REPLY_SECONDS, self._look)

    def clear(self) -> None:
        """Forget all requests: the process is gone, and the caller ends them."""
        self._waiting.clear()
        if self._plan is not None:
            self._plan.cancel()
            self._plan = None

    def _look(self) -> None:
        loop, waiting = asyncio.get_running_loop(), self._waiting
        while waiting and waiting[0][0] <= loop.time():
            self._end(waiting.popleft()[1])
        self._plan = loop.call_at(waiting[0][0], self._look) if waiting else None


class _Watch:
    """Executions of one kernel that are looked at together, by one task, as long as there are any.

    `add` each; ``pause`` is how many seconds one waits before it is looked at.
    """

    pause = 0.0

    def __init__(self) -> None:
        self._waiting: list[Execution] = []
        self._task: asyncio.Task[None] | None = None

    def add(self, execution: Execution) -> None:
        """Watch an execution."""
        self._waiting.append(execution)
        if self._task is None:
            name = type(self).__name__.lower()
            self._task = asyncio.get_running_loop().create_task(self._look(), name=name)

    def clear(self) -> None:
        """Forget all executions: the process is gone, or is another server's from now on."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _look(self) -> None:
        while self._waiting:
            await asyncio.sleep(self.pause)
            # Executions added while the kernel is asked are for the next round: its answer proves
            # nothing about them.
            waiting, self._waiting = self._waiting, []
            await self._look_at(waiting)
        self._task = None

    async def _look_at(self, waiting: list[Execution]) -> None:
        """Ask the kernel, and end those of the executions that its answer ends."""
        raise NotImplementedError


class Overdue(_Watch):
    """Executions of one kernel that lack their replies although it has gone idle for them.

    ipykernel drops a request, without a reply, if an interrupt hits it just before the code or
    between the code and the end of its handler. The idle status and the reply come over two
    sockets, so a missing reply may also be late. But a kernel replies in order over one socket:
    once it has answered a later request, no reply to an earlier one follows. If it does not answer,
    nothing is ended here.

    ``ask`` sends such a request, and returns whether the kernel answers within so many seconds.
    ``end`` is called with each execution whose reply will not come.
    """

    pause = OVERDUE_SECONDS

    def __init__(
        self, ask: Callable[[float], Awaitable[bool]], end: Callable[[Execution], None]
    ) -> None:
        super().__init__()
        self._ask = ask
        self._end = end

    async def _look_at(self, waiting: list[Execution]) -> None:
        lacking = [one for one in waiting if _lacks_reply(one)]
        if lacking and await self._ask(REPLY_SECONDS):
            for execution in lacking:
                if _lacks_reply(execution):
                    self._end(execution)


class Behind(_Watch):
    """Executions of one kernel that lack their idle statuses although it has replied.

    Some kernels never send them. But replies overtake output, and a large message on iopub may be
    on its way for seconds in which nothing else comes. A kernel publishes in order over one socket:
    once it has gone idle for a later request, no output of an earlier one follows.

    ``ask`` returns when the kernel has gone idle for such a request, or does not do so in time.
    ``end`` is called with each execution whose idle status has not come until then.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[None]], end: Callable[[Execution], None]
    ) -> None:
        super().__init__()
        self._ask = ask
        self._end = end

    async def _look_at(self, waiting: list[Execution]) -> None:
        await self._ask()
        for execution in waiting:
            if not (execution.idle or execution.ended):
                self._end(execution)


def _lacks_reply(execution: Execution) -> bool:
    return execution.reply_status is None and not execution.ended


class Subshells:
    """Executions of one kernel that wait in a subshell [JEP 91], which the kernel may not have.

    ipykernel up to 7.1 drops a request for a subshell that it does not have, and sends nothing. A
    kernel without subshells runs such a request, and cannot be asked; nothing is ended then.
    ``ask`` returns the ids of the kernel's subshells, or None if it does not answer. ``end`` is
    called with an execution, and the id of the subshell that the kernel does not have.
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
        """Watch an execution that was sent to a subshell."""
        self._waiting[execution] = subshell_id
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._look(), name="subshells")

    def clear(self) -> None:
        """Forget all executions: the process is gone, or is another server's from now on."""
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _look(self) -> None:
        pause, longest = BEGIN_SECONDS
        while self._waiting:
            await asyncio.sleep(pause)
            self._forget_begun()
            # An execution added while the kernel is asked may wait in a subshell that was made
            # after the kernel's answer, so only those before the question are looked at.
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


class Dropped:
    """Executions of one kernel's main shell with which the kernel never begins.

    ipykernel drops a request that it takes for one it has had before, as its signature is the same,
    and sends nothing. Whatever waits for the main shell would wait for ever. A kernel replies in
    order over one socket: once it has answered a later request, no reply to an earlier one follows.

    ``suspects`` returns the executions that the kernel was sent, and that wait while its main shell
    runs none; and None when no execution is under way. ``ask`` sends a request, and returns whether
    the kernel answers within so many seconds. ``end`` is called with each execution that was a
    suspect at two looks, and with which the kernel has not begun when it has answered.
    """

    def __init__(
        self,
        suspects: Callable[[], Collection[Execution] | None],
        ask: Callable[[float], Awaitable[bool]],
        end: Callable[[Execution], None],
    ) -> None:
        self._suspects = suspects
        self._ask = ask
        self._end = end
        self._task: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Look now and then, as long as executions are under way."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._look(), name="dropped")

    def clear(self) -> None:
        """Look no more: the process is gone, or is another server's from now on."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _look(self) -> None:
        first, longest = DROPPED_SECONDS
        pause, known = first, set[Execution]()
        while True:
            await asyncio.sleep(pause)
            found = self._suspects()
            if found is None:
                break
            waiting = known & {*found}
            if waiting and await self._ask(REPLY_SECONDS):
                for execution in waiting:
                    if execution.state is ExecutionState.QUEUED and _lacks_reply(execution):
                        self._end(execution)
            is_news = bool(found) and not waiting
            pause, known = first if is_news else min(2 * pause, longest), {*found}
        self._task = None
