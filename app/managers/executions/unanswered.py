"""Requests to which a kernel does not reply, or with which it does not even begin."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from typing import Final

from ...keeper.requests import Request
from .execution import Execution, ExecutionState

__all__ = ["Behind", "Dropped", "Overdue", "Subshells", "Unanswered"]

logger = logging.getLogger(__name__)

REPLY_SECONDS: Final = 5.0
"""How many seconds after its idle status a request waits for its reply, which comes over another
socket, and so may come later."""

OVERDUE_SECONDS: Final = 0.1
"""How many seconds after its idle status an execution waits for its reply before the kernel is sent
another request, to find out whether it still replies."""

BEGIN_SECONDS: Final = 5.0
"""How many seconds an execution may wait in a subshell before the kernel is asked whether it has
that subshell."""

DROPPED_SECONDS: Final = 5.0
"""How many seconds an execution may wait at a main shell that runs nothing before the kernel is
asked whether it still replies."""

LONGEST_SECONDS: Final = 60.0
"""The longest pause between two looks, when the kernel does not answer or a look fails."""


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
        # All wait equally long, so the first is always the next. It is taken out before its end,
        # which may add others behind.
        loop, waiting = asyncio.get_running_loop(), self._waiting
        while waiting and waiting[0][0] <= loop.time():
            self._end(waiting.popleft()[1])
        self._plan = loop.call_at(waiting[0][0], self._look) if waiting else None


class _Looks:
    """Looks now and then, by one task, at the executions of one kernel that wait, while any does.

    ``pauses`` are how many seconds lie before a look, at the least and at the most. A look that
    fails ends nothing: it is logged, and the next one follows the longest pause.
    """

    pauses = (0.0, LONGEST_SECONDS)

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Begin to look, unless this does so already."""
        if self._task is None:
            name = type(self).__name__.lower()
            self._task = asyncio.get_running_loop().create_task(self._go_on(), name=name)

    def clear(self) -> None:
        """Look no more: the process is gone, or is another server's from now on."""
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _go_on(self) -> None:
        first, longest = self.pauses
        pause: float | None = first
        try:
            while pause is not None:
                await asyncio.sleep(pause)
                try:
                    pause = await self._look(pause)
                except Exception:
                    name = type(self).__name__.lower()
                    logger.exception("a look at executions without an answer (%s) failed", name)
                    pause = longest
        finally:
            if self._task is asyncio.current_task():  # after `clear` there may be a newer one
                self._task = None

    async def _look(self, pause: float) -> float | None:
        """Look, ``pause`` after the last time. Returns the next pause; None if nothing waits."""
        raise NotImplementedError

    def _longer(self, pause: float) -> float:
        return min(2 * pause, self.pauses[1])


class _Watch(_Looks):
    """Executions of one kernel that are looked at together, as soon as each has waited a little."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: list[Execution] = []

    def add(self, execution: Execution) -> None:
        """Watch an execution."""
        self._waiting.append(execution)
        self.watch()

    def clear(self) -> None:
        """As `_Looks.clear`; all executions are forgotten."""
        self._waiting.clear()
        super().clear()

    async def _look(self, pause: float) -> float | None:  # noqa: ARG002
        # Executions added while the kernel is asked are for the next round: its answer proves
        # nothing about them.
        waiting, self._waiting = self._waiting, []
        try:
            await self._look_at(waiting)
        except Exception:
            self._waiting = waiting + self._waiting
            raise
        return self.pauses[0] if self._waiting else None

    async def _look_at(self, waiting: list[Execution]) -> None:
        """Ask the kernel, and end the executions that its answer proves to be over."""
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

    pauses = (OVERDUE_SECONDS, LONGEST_SECONDS)

    def __init__(
        self, ask: Callable[[float], Awaitable[bool]], end: Callable[[Execution], None]
    ) -> None:
        super().__init__()
        self._ask = ask
        self._end = end

    async def _look_at(self, waiting: list[Execution]) -> None:
        # Looked at before the question, which costs the kernel something, and again behind it, as
        # their replies may have come meanwhile.
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


class Subshells(_Looks):
    """Executions of one kernel that wait in a subshell [JEP 91], which the kernel may not have.

    ipykernel up to 7.1 drops a request for a subshell that it does not have, and sends nothing. A
    kernel without subshells runs such a request, and cannot be asked; nothing is ended then.
    ``ask`` returns the ids of the kernel's subshells, or None if it does not answer. ``end`` is
    called with an execution, and the id of the subshell that the kernel does not have.
    """

    pauses = (BEGIN_SECONDS, LONGEST_SECONDS)

    def __init__(
        self,
        ask: Callable[[], Awaitable[Collection[str] | None]],
        end: Callable[[Execution, str], None],
    ) -> None:
        super().__init__()
        self._ask = ask
        self._end = end
        self._waiting: dict[Execution, str] = {}

    def add(self, execution: Execution, subshell_id: str) -> None:
        """Watch an execution that was sent to a subshell."""
        self._waiting[execution] = subshell_id
        self.watch()

    def clear(self) -> None:
        """As `_Looks.clear`; all executions are forgotten."""
        self._waiting.clear()
        super().clear()

    async def _look(self, pause: float) -> float | None:
        self._forget_begun()
        # An execution added while the kernel is asked may wait in a subshell that was made after
        # the kernel's answer, so only those before the question are looked at.
        asked_for = dict(self._waiting)
        known = await self._ask() if asked_for else None
        self._forget_begun()
        for execution, subshell_id in asked_for.items():
            if known is not None and subshell_id not in known and execution in self._waiting:
                self._end(execution, subshell_id)
                self._waiting.pop(execution, None)
        return self._longer(pause) if self._waiting else None

    def _forget_begun(self) -> None:
        for execution in [*self._waiting]:
            if execution.state is not ExecutionState.QUEUED:
                del self._waiting[execution]


class Dropped(_Looks):
    """Executions of one kernel's main shell with which the kernel never begins.

    ipykernel drops a request that it takes for one it has had before, as its signature is the same,
    and sends nothing. Whatever waits for the main shell would wait for ever. A kernel replies in
    order over one socket: once it has answered a later request, no reply to an earlier one follows.

    ``suspects`` returns the executions that the kernel was sent, and that wait while its main shell
    runs none; and None when no execution is under way. ``ask`` sends a request, and returns whether
    the kernel answers within so many seconds. ``end`` is called with each execution that was a
    suspect at two looks, and with which the kernel has not begun when it has answered.
    """

    pauses = (DROPPED_SECONDS, LONGEST_SECONDS)

    def __init__(
        self,
        suspects: Callable[[], Collection[Execution] | None],
        ask: Callable[[float], Awaitable[bool]],
        end: Callable[[Execution], None],
    ) -> None:
        super().__init__()
        self._suspects = suspects
        self._ask = ask
        self._end = end
        self._known: set[Execution] = set()  # the suspects of the look before

    def clear(self) -> None:
        """As `_Looks.clear`."""
        self._known.clear()
        super().clear()

    async def _look(self, pause: float) -> float | None:
        found = self._suspects()
        waiting = self._known & {*(found or ())}
        self._known = {*(found or ())}
        if waiting and await self._ask(REPLY_SECONDS):
            for execution in waiting:
                if execution.state is ExecutionState.QUEUED and _lacks_reply(execution):
                    self._end(execution)
        if found is None:
            return None
        # While code runs there are no suspects. A dropped execution behind it is to be found soon
        # after the code has ended: the shortest pause.
        return self._longer(pause) if waiting else self.pauses[0]
