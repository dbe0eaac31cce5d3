"""Clients that read how kernels count, through a balancer, and come back whenever they are cut."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Final

import httpx
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from tests.support.balancer import PROXY_SECONDS, Balancer
from tests.support.channels import JupyterChannels
from tests.support.executions import stream
from tests.support.rest import RestClient

__all__ = ["READERS", "Missing", "Reader", "again"]

LEFT: Final = (ConnectionClosed, InvalidHandshake, OSError, TimeoutError)

RETURN_SECONDS: Final = 0.1


class Missing(Exception):
    """A reader has not got what it is owed, or has got it twice."""


@dataclass
class Reader:
    """What one reader has got of a kernel's counting from 0 on, behind the number ``after``."""

    kind: str
    kernel_id: str
    count: int
    after: int
    epoch: str
    returns: int = 0
    next: int = 0
    """The first number that has not come."""
    _last: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether every number has come."""
        return self.next >= self.count

    def come(self) -> None:
        """A connection begins."""
        self._last = None

    def take(self, text: str) -> None:
        """What came; raises `Missing`.

        Within a connection no number is left out or comes twice. A WebSocket that comes back may
        get again what it has got; one who says how far he has read does not.
        """
        for number in map(int, text.split()):
            if self._last is not None:
                is_right = number == self._last + 1
            elif self.kind == "events":
                is_right = number == self.next
            else:
                is_right = number <= self.next
            if not is_right:
                raise Missing(f"{number} came behind {self._last}: {self}")
            self._last = number
            self.next = max(self.next, number + 1)


async def again(ask: Callable[[], Coroutine[Any, Any, httpx.Response]]) -> httpx.Response:
    """The answer to a request that does no harm twice, once there is one."""
    while True:
        try:
            answer = await ask()
            if answer.status_code < 500:
                return answer
        except httpx.HTTPError:
            pass
        await asyncio.sleep(RETURN_SECONDS)


async def read_websocket(balancer: Balancer, token: str, reader: Reader) -> None:
    """Read over a WebSocket, as a client that knows its session and nothing else."""
    session = os.urandom(8).hex()
    is_known = False  # a session that was never accepted has no place to come back to
    while not reader.is_whole:
        try:
            async with await JupyterChannels.connect(
                balancer.ws_url,
                reader.kernel_id,
                token,
                session_id=session,
                query={} if is_known else {"after": str(reader.after)},
                log_length=1,
            ) as channels:
                is_known = True
                reader.come()
                while not reader.is_whole:
                    message = await channels.recv(PROXY_SECONDS)
                    if message.msg_type == "stream":
                        reader.take(message.content["text"])
        except LEFT:
            reader.returns += 1
            await asyncio.sleep(RETURN_SECONDS)


async def read_events(balancer: Balancer, token: str, reader: Reader) -> None:
    """Read a stream of events (SSE), and say how far when coming back."""
    path = f"/api/kernels/{reader.kernel_id}/messages"
    async with RestClient(balancer.url, token) as rest:
        while not reader.is_whole:
            query = {"after": reader.after, "epoch": reader.epoch}
            reader.come()
            try:
                async for event in stream(rest, path, "text/event-stream", params=query):
                    if event["type"] == "gap":
                        raise Missing(f"a gap: {event}: {reader}")
                    if event["type"] == "message":
                        reader.after = event["seq"]
                        if event["header"]["msg_type"] == "stream":
                            reader.take(event["content"]["text"])
                    if reader.is_whole:
                        return
            except (httpx.HTTPError, OSError, TimeoutError, AssertionError):
                pass  # also where the answer is a refusal
            reader.returns += 1
            await asyncio.sleep(RETURN_SECONDS)


READERS: Final[dict[str, Callable[[Balancer, str, Reader], Coroutine[Any, Any, None]]]] = {
    "websocket": read_websocket,
    "events": read_events,
}
