"""Responses that are made while their client waits, and given up when it goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["AwaitedResponse"]


class AwaitedResponse(Response):
    """A response that ``make`` makes. If the client goes away first, ``make`` is cancelled.

    ``on_gone`` is called after that cancellation.
    """

    def __init__(
        self,
        make: Callable[[], Awaitable[Response]],
        on_gone: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        super().__init__()
        self._make = make
        self._on_gone = on_gone

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response once it is made, or give up when the client has gone."""
        making = asyncio.ensure_future(self._make())
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({making, leaving}, return_when=asyncio.FIRST_COMPLETED)
            # Both may be done. Then the response is sent although its client has gone: `make` has
            # ended, so there is nothing to cancel and no call of `on_gone`.
            if making.done():
                response = await making
                await response(scope, receive, send)
            elif self._on_gone is not None:
                making.cancel()  # awaited: `on_gone` counts the requests that still wait
                await asyncio.wait({making})
                await self._on_gone()
        finally:
            # Also if this task is cancelled itself: neither task goes on when nobody awaits it.
            for task in (making, leaving):
                task.cancel()
            await asyncio.gather(making, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
