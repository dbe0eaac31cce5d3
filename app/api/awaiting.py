"""Responses that wait for something, and for nobody once the client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

__all__ = ["AwaitedResponse"]


class AwaitedResponse(Response):
    """The response that ``make`` makes; it is cancelled if the client goes away before that.

    ``on_gone`` is called then.
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
        """Wait, then answer."""
        making = asyncio.ensure_future(self._make())
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({making, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if making.done():
                response = await making
                await response(scope, receive, send)
            elif self._on_gone is not None:
                making.cancel()  # this client waits no more
                await asyncio.wait({making})
                await self._on_gone()
        finally:
            for task in (making, leaving):
                task.cancel()
            await asyncio.gather(making, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
