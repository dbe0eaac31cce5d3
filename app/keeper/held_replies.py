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
"""How long a reply is held for the idle status that follows all its output."""

MAX_HOLD_SECONDS: Final = 10.0
"""The same while there is output of the kernel that has not been read yet."""


class HeldReplies:
    """Of one kernel.

    A reply comes over another socket than the output, and may overtake it; a client that stops at
    the reply would miss what is still on its way.
    """

    def __init__(self, release: Callable[[Request], None], is_behind: Callable[[], bool]) -> None:
        self._release = release
        self._is_behind = is_behind
        self._held: deque[tuple[float, Request]] = deque()  # and since when, by the loop's clock
        self._plan: asyncio.TimerHandle | None = None

    def hold(self, request: Request, reply: Message) -> None:
        """Keep a reply until somebody lets it go, or for as long as the bounds above say."""
        request.held = reply
        loop = asyncio.get_running_loop()
        self._held.append((loop.time(), request))
        if self._plan is None:
            self._plan = loop.call_later(HOLD_SECONDS, self._release_late)

    def clear(self) -> None:
        """Hold nothing any more; what was held has been taken care of."""
        self._held.clear()
        if self._plan is not None:
            self._plan.cancel()
            self._plan = None

    def _release_late(self) -> None:
        """Let go what was held long enough: some kernels do not go idle for every request."""
        loop, held = asyncio.get_running_loop(), self._held
        until = loop.time() - (MAX_HOLD_SECONDS if self._is_behind() else HOLD_SECONDS)
        while held and (held[0][1].held is None or held[0][0] <= until):
            self._release(held.popleft()[1])
        self._plan = loop.call_later(HOLD_SECONDS, self._release_late) if held else None
