"""Replies that are held back for the output that belongs before them."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

from ..protocol.messages import Message
from .requests import Request

__all__ = ["HeldReplies"]

HOLD_SECONDS: Final = 0.5
"""How many seconds a reply is held for the idle status, which follows all output. Each reply of a
kernel that never goes idle comes so much later, or up to twice that."""

MAX_HOLD_SECONDS: Final = 10.0
"""How many seconds a reply is held while there is output of the kernel that was not read yet. With
this bound a kernel that floods without an end still replies."""


class HeldReplies:
    """The held replies of one kernel.

    A reply comes over another socket than the output, and may overtake it: a client that stops at
    the reply would miss output that is still on its way. The owner of this object lets a reply go
    when its idle status has come. This object calls ``release`` for each request whose reply was
    held long enough; ``release`` must do nothing for a request whose reply is gone already.
    ``is_behind`` tells whether the kernel has unread output.
    """

    def __init__(self, release: Callable[[Request], None], is_behind: Callable[[], bool]) -> None:
        self._release = release
        self._is_behind = is_behind
        # Requests, and since when their replies are held, by the loop's clock.
        self._held: deque[tuple[float, Request]] = deque()
        self._plan: asyncio.TimerHandle | None = None

    def hold(self, request: Request, reply: Message) -> None:
        """Hold a reply until it is let go, or for as long as the bounds above say."""
        # One timer for all replies: they are in the order of their times, the first is due first.
        request.held = reply
        loop = asyncio.get_running_loop()
        self._held.append((loop.time(), request))
        if self._plan is None:
            self._plan = loop.call_later(HOLD_SECONDS, self._release_late)

    def clear(self) -> None:
        """Forget all replies: the caller has let them go, or dropped them."""
        self._held.clear()
        if self._plan is not None:
            self._plan.cancel()
            self._plan = None

    def _release_late(self) -> None:
        """Let go replies that were held long enough: some kernels never go idle for a request."""
        # A reply that the idle status has let go is still in the queue, with ``held`` None: it is
        # passed over, as `release` does nothing for it.
        loop, held = asyncio.get_running_loop(), self._held
        until = loop.time() - (MAX_HOLD_SECONDS if self._is_behind() else HOLD_SECONDS)
        while held and (held[0][1].held is None or held[0][0] <= until):
            self._release(held.popleft()[1])
        self._plan = loop.call_later(HOLD_SECONDS, self._release_late) if held else None
