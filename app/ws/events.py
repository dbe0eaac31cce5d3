"""The events WebSocket: every event of the service, for as long as a client listens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, MutableMapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Final, Protocol

from fastapi import WebSocket
from starlette.websockets import WebSocketDisconnect

from ..managers.telemetry.events import Subscription
from ..protocol.subprotocols import accepted
from .sending import SERVICE_RESTART

__all__ = ["events_endpoint"]

logger = logging.getLogger(__name__)

TRY_AGAIN_LATER: Final = 1013
"""Close code for a subscriber that has fallen too far behind."""


class Subscribable(Protocol):
    """The events, as far as a client may see them."""

    def subscription(self) -> AbstractAsyncContextManager[Subscription]:
        """A subscription to the events. Raises `ServerStopping`."""


class OfOthers(Protocol):
    """The events of other replicas."""

    def events(
        self, scope: MutableMapping[str, Any], taking: Subscription, /
    ) -> AbstractAsyncContextManager[None]:
        """Within, put the others' events that the caller may see into ``taking`` as well.

        ``scope`` is that of the caller's request.
        """


def events_endpoint(
    others_of: Callable[[WebSocket], OfOthers | None],
) -> Callable[[WebSocket], Coroutine[Any, Any, None]]:
    """The endpoint of the events WebSocket.

    ``others_of`` returns the other replicas whose events a client gets beside this server's.
    """

    async def subscribe(websocket: WebSocket) -> None:
        events: Subscribable = websocket.state.events
        async with AsyncExitStack() as stack:
            subscription = await stack.enter_async_context(events.subscription())
            # The events of other replicas are subscribed to before the client's handshake is
            # answered: from the answer on the client misses no event.
            if (others := others_of(websocket)) is not None:
                await stack.enter_async_context(others.events(websocket.scope, subscription))
            await _serve(websocket, subscription)

    return subscribe


async def _serve(websocket: WebSocket, subscription: Subscription) -> None:
    """Have a client listen: one JSON object a text frame, `schema_id` and the data.

    There is no replay: events from now on. What a client sends is ignored. One that takes too
    little gets what is there and is then disconnected.
    """
    await websocket.accept(accepted(websocket.scope["subprotocols"]))
    pump = asyncio.get_running_loop().create_task(
        _pump(websocket, subscription), name="pump of events"
    )
    try:
        while (await websocket.receive())["type"] != "websocket.disconnect":
            pass
    finally:
        # The subscription ends only when the pump has ended and takes no more from it. This uses
        # `wait`, as `await pump` would raise CancelledError even if only the pump is cancelled.
        pump.cancel()
        await asyncio.wait({pump})


async def _pump(websocket: WebSocket, subscription: Subscription) -> None:
    """Send each event, then close; a client that was too slow is told how many events it missed."""
    try:
        while (event := await subscription.take()) is not None:
            await websocket.send_text(event)
        if not subscription.dropped:
            await websocket.close(SERVICE_RESTART, "the server is shutting down")
            return
        logger.warning("a subscriber to events is too slow and is disconnected")
        await websocket.close(TRY_AGAIN_LATER, f"too slow: {subscription.dropped} events dropped")
    except (WebSocketDisconnect, OSError, RuntimeError):
        pass  # `_serve` sees the disconnection, too, and the subscription ends
