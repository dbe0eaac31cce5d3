"""A subscriber to a server's events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from tests.support.channels import Close
from tests.support.server import ServerProcess

EVENT_TIMEOUT = 30  # seconds

ACTIONS = "https://events.jupyter.org/jupyter_server/kernel_actions/v1"
LIFECYCLE = "urn:kernelkeep:kernel_lifecycle:v1"

Event = dict[str, Any]


class EventListener:
    """Reads events while a method waits for some; ``log`` holds all that it has read."""

    def __init__(self, websocket: ClientConnection) -> None:
        self.websocket = websocket
        self.log: list[Event] = []

    async def recv(self) -> Event:
        """The next event, of whatever schema."""
        async with asyncio.timeout(EVENT_TIMEOUT):
            frame = await self.websocket.recv()
        assert isinstance(frame, str), "events are text frames"
        event: Event = json.loads(frame)
        self.log.append(event)
        return event

    async def next(self, **items: Any) -> Event:
        """The next event that has these items; those before it are in ``log``."""
        try:
            async with asyncio.timeout(EVENT_TIMEOUT):
                while True:
                    event = await self.recv()
                    if items.items() <= event.items():
                        return event
        except TimeoutError as error:
            error.add_note(f"received: {self.log}")
            raise

    async def action(self, action: str, **items: Any) -> Event:
        """The next event of an action with a kernel, checked for its schema."""
        event = await self.next(action=action, **items)
        assert event["schema_id"] == ACTIONS
        return event

    async def turn(self, event: str, **items: Any) -> Event:
        """The next event of a turn in a kernel's life, checked for its schema."""
        found = await self.next(event=event, **items)
        assert found["schema_id"] == LIFECYCLE
        return found

    async def closed(self) -> Close:
        """Reads until the server closes the connection."""
        try:
            while True:
                await self.recv()
        except ConnectionClosed as closed:
            if closed.rcvd is not None:
                return Close(closed.rcvd.code, closed.rcvd.reason)
            return Close(1006, "")

    def told(self, kernel_id: str) -> list[str]:
        """What has been read of a kernel, in order: "restart success", "ready", ...

        What it uses is told once a minute, whatever it does, and is left out.
        """
        return [
            event.get("event") or f"{event['action']} {event['status']}"
            for event in self.log
            if event["kernel_id"] == kernel_id and event.get("event") != "usage"
        ]


@asynccontextmanager
async def listening(
    server: ServerProcess, token: str = "", **options: Any
) -> AsyncIterator[EventListener]:
    """A subscriber to this server's events; ``options`` are those of websockets' ``connect``.

    Without a ``token`` it shows the server's own.
    """
    websocket = await connect(
        f"{server.ws_url}/api/events/subscribe",
        additional_headers={"Authorization": f"token {token or server.token}"},
        compression=None,
        open_timeout=EVENT_TIMEOUT,
        proxy=None,
        **options,
    )
    async with websocket:
        yield EventListener(websocket)
