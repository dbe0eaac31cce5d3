"""How many kernels start at a time, how many may wait for that, and how many there may be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..errors import KernelNotRunning, ServerStopping, TooManyStarts

__all__ = ["Starts"]

SLOT_SECONDS: Final = 10.0
"""A start that takes longer waits for something, and no longer keeps others from starting."""

RETRY_SECONDS: Final = 5
"""When to come again if there is no room in the queue."""


class Starts:
    """Lets ``limit`` kernels start, or restart, at a time, until they answer or have failed.

    The rest wait in the order in which they came, at most ``queue_limit`` of them.
    """

    def __init__(self, limit: int, queue_limit: int) -> None:
        self._limit = limit
        self._queue_limit = queue_limit
        self._queue: dict[asyncio.Future[None], None] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopped = False
        self._asked = 0  # from the request until the launch is done
        self._launching = 0
        self.running = 0

    @property
    def waiting(self) -> int:
        """Starts that wait for their turn."""
        return len(self._queue)

    @contextmanager
    def admission(self, *, always: bool = False) -> Iterator[None]:
        """What prepares and launches one kernel; raises `TooManyStarts` when it could not wait.

        It could ``always`` where nobody could be told to come again: each kernel that is restarted
        by itself waits but once, and ``max_kernels`` bounds them.
        """
        there = self._asked - self._launching + self.running
        if there >= self._limit + self._queue_limit and not always:
            raise TooManyStarts(
                f"{self.running} kernels are starting and {self._asked - self._launching} wait for "
                "their turn; that is as many as may",
                RETRY_SECONDS,
            )
        self._asked += 1
        try:
            yield
        finally:
            self._asked -= 1

    async def launch(
        self, launch: Callable[[], Awaitable[None]], came_up: asyncio.Future[bool]
    ) -> None:
        """Launch a kernel, within its `admission`, when its turn comes; raises what that does.

        ``came_up`` is done when the kernel answers or has failed, which may be before its turn:
        then it was shut down, and this raises `KernelNotRunning`, or `ServerStopping`.
        """
        await self._turn(came_up)
        release = _once(self._leave)
        self._launching += 1
        try:
            await launch()
        except BaseException:
            release()
            raise
        finally:
            self._launching -= 1
        came_up.add_done_callback(lambda _: release())
        asyncio.get_running_loop().call_later(SLOT_SECONDS, release)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Within, what waits for `quiet` goes on waiting."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    async def quiet(self) -> None:
        """Return when no kernel starts. Has no bound of its own: it is for what may wait."""
        await self._idle.wait()

    def stop(self) -> None:
        """The server stops: whoever waits is told so, and nobody's turn comes any more."""
        self._stopped = True
        for waiter in self._queue:
            if not waiter.done():
                waiter.set_result(None)

    async def _turn(self, came_up: asyncio.Future[bool]) -> None:
        if self._stopped:
            raise ServerStopping()
        if self.running < self._limit and not self._queue:
            self._enter()
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue[waiter] = None
        entered = False
        try:
            # Each start before it has its bound.
            events: set[asyncio.Future[Any]] = {waiter, came_up}
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            if self._stopped:
                raise ServerStopping()
            if came_up.done():
                raise KernelNotRunning("The kernel was shut down before its turn to start came")
            self._enter()
            entered = True
        finally:
            del self._queue[waiter]
            if not entered:
                self._wake()

    def _enter(self) -> None:
        self.running += 1
        self._idle.clear()

    def _leave(self) -> None:
        self.running -= 1
        if not self.running:
            self._idle.set()
        self._wake()

    def _wake(self) -> None:
        """Tell as many of those who wait as there is room for; they enter in this order."""
        room = self._limit - self.running
        for waiter in [*self._queue][: max(room, 0)]:
            if not waiter.done():
                waiter.set_result(None)


def _once(call: Callable[[], None]) -> Callable[[], None]:
    called = False

    def wrapper() -> None:
        nonlocal called
        if not called:
            called = True
            call()

    return wrapper
