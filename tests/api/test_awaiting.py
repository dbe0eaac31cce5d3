"""Responses that are given up when their client goes away."""

from __future__ import annotations

import asyncio

import pytest
from starlette.responses import Response
from starlette.types import Message

from app.api.awaiting import AwaitedResponse
from tests.support.asgi import scope


class Client:
    """A client that goes away when it is told to."""

    def __init__(self) -> None:
        self.leaves = asyncio.Event()
        self.sent: list[Message] = []

    async def receive(self) -> Message:
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        self.sent.append(message)

    async def ask(self, response: Response) -> None:
        await response(scope(), self.receive, self.send)


async def test_a_response_that_is_made_is_sent() -> None:
    async def make() -> Response:
        await asyncio.sleep(0)
        return Response(b"made", 201)

    client = Client()
    await client.ask(AwaitedResponse(make))
    start, body = client.sent
    assert (start["status"], body["body"]) == (201, b"made")
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_when_the_client_goes_making_ends_first_and_then_it_is_told() -> None:
    client, events = Client(), list[str]()

    async def make() -> Response:
        client.leaves.set()
        try:
            await asyncio.Event().wait()
        finally:
            events.append("cancelled")
        raise AssertionError

    async def on_gone() -> None:
        events.append("gone")

    await client.ask(AwaitedResponse(make, on_gone))
    assert events == ["cancelled", "gone"]
    assert client.sent == []


async def test_what_is_made_while_the_client_goes_is_sent_all_the_same() -> None:
    client, gone = Client(), list[str]()

    async def make() -> Response:
        client.leaves.set()
        return Response()

    async def on_gone() -> None:
        gone.append("gone")

    await client.ask(AwaitedResponse(make, on_gone))
    assert [message["type"] for message in client.sent] == [
        "http.response.start",
        "http.response.body",
    ]
    assert gone == []


async def test_what_making_raises_is_raised() -> None:
    async def make() -> Response:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await Client().ask(AwaitedResponse(make))


async def test_only_the_end_of_the_connection_is_its_end() -> None:
    client, making = Client(), asyncio.Event()
    coming: list[Message] = [{"type": "http.request"}, {"type": "http.disconnect"}]

    async def receive() -> Message:
        await making.wait()
        return coming.pop(0)

    async def make() -> Response:
        making.set()
        await asyncio.Event().wait()
        raise AssertionError

    await AwaitedResponse(make)(scope(), receive, client.send)
    assert (client.sent, coming) == ([], [])
