"""How many kernels may start at the same time, and how many may wait for their turn."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from ..errors import KernelNotRunning, ServerStopping, TooManyStarts

__all__ = ["Starts"]

SLOT_SECONDS: Final = 10.0
"""After this time a start gives up its slot, so that other starts do not wait for a slow kernel."""

RETRY_SECONDS: Final = 5
"""Seconds after which a client may try again if the queue was full."""


class Starts:
    """Lets at most ``limit`` kernels start or restart at the same time.

    A start has a slot until the kernel answers or has failed, for `SLOT_SECONDS` at most. Other
    starts wait in the order in which they came, at most ``queue_limit`` of them.
    """

    def __init__(self, limit: int, queue_limit: int) -> None:
        self._limit = limit
        self._queue_limit = queue_limit
        self._queue: dict[asyncio.Future[None], None] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopped = False
        self._asked = 0  # admissions: each from its request until its launch is done
        self._launching = 0
        self.running = 0

    @property
    def waiting(self) -> int:
        """How many starts wait for their turn."""
        return len(self._queue)

    @contextmanager
    def admission(self, *, always: bool = False) -> Iterator[None]:
        """A block in which one start is counted, from its request until it is launched.

        Raises `TooManyStarts` if the queue is full, unless the start is to be admitted ``always``.
        That is for a restart that no client has asked for, as there is no client that could be told
        to try again; ``max_kernels`` bounds their number, as each kernel has one restart at a time.
        """
        # A start that launches is counted twice: in `_asked` until its launch is done, and in
        # `running` from its turn on.
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
        """Call ``launch`` when the kernel's turn comes, and raise what it raises.

        Call it within the start's `admission`. ``came_up`` is done when the kernel answers or has
        failed. If it is done before the kernel's turn, the kernel was shut down meanwhile, and this
        raises `KernelNotRunning`. Raises `ServerStopping` after `stop`.
        """
        await self._turn(came_up)
        # Nothing is awaited between the end of `_turn` and `try`: so no cancellation comes between
        # the taking of the slot and the code that gives it up.
        release = _once(self._leave)
        self._launching += 1
        try:
            await launch()
        except BaseException:
            release()
            raise
        finally:
            self._launching -= 1
        # `release` is called twice, in either order; the first call gives up the slot.
        came_up.add_done_callback(lambda _: release())
        # The timer is not cancelled when the kernel has come up: its call then does nothing.
        asyncio.get_running_loop().call_later(SLOT_SECONDS, release)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Count as a start that runs, so that `quiet` does not return, until the block ends."""
        self._enter()
        try:
            yield
        finally:
            self._leave()

    async def quiet(self) -> None:
        """Return when no kernel is starting. It has no bound of its own."""
        await self._idle.wait()

    def stop(self) -> None:
        """Have every start that waits, and every later one, raise `ServerStopping`."""
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
        try:
            # This wait needs no bound: each start before this one gives up its slot in time.
            events: set[asyncio.Future[Any]] = {waiter, came_up}
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
            # `_wake` may have chosen this start just before it was cancelled, its kernel was shut
            # down, or the server stopped. It then does not enter, and wakes another below.
            if self._stopped:
                raise ServerStopping()
            if came_up.done():
                raise KernelNotRunning("The kernel was shut down before its turn to start came")
            self._enter()
        finally:
            # Removed first, or `_wake` would choose this start again, which will not enter. A start
            # that has entered wakes others as well: further slots may have become free meanwhile,
            # and further starts may be in the queue.
            del self._queue[waiter]
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
        """Wake as many of the first waiting starts as there are free slots.

        A start that was woken stays in the queue until it has entered. So a start that comes
        meanwhile does not overtake it, and another call of this wakes no other start in its place.
        """
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
