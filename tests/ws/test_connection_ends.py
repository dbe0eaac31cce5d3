"""How a connection's end is taken, whoever has ended the connection (`app.ws.channels`)."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Final, cast

import pytest
from starlette.types import Message
from starlette.websockets import WebSocket

from app.managers.kernels.kernel import Kernel
from app.ws.channels import ABNORMAL, INTERNAL_ERROR, KERNEL_GONE, ChannelsConnection
from app.ws.sending import CREDENTIAL_ENDED, EXTENSION, SERVICE_RESTART, sender_for
from tests.managers.scripted import ScriptedKernel

CONNECT: Final[Message] = {"type": "websocket.connect"}


async def listened(*events: Message, permitted: bool = True) -> tuple[bool, list[Message]]:
    """Whether the client has closed the connection, and what it was sent."""
    kernel = ScriptedKernel()
    coming = iter([CONNECT, *events])
    sent: list[Message] = []

    async def receive() -> Message:
        return next(coming)

    async def send(message: Message) -> None:
        sent.append(message)

    websocket = WebSocket({"type": "websocket", "subprotocols": []}, receive, send)
    await websocket.accept()
    connection = ChannelsConnection(
        websocket, cast(Kernel, kernel), "client", start=None, is_v1=True, limits=None
    )
    connection.is_permitted = lambda: permitted
    sender = sender_for(websocket, kernel.log, kernel.log.end, is_v1=True, numbered=False)
    return await connection._listen(sender), sent[1:]


@pytest.mark.parametrize("code", [1000, 1001, 1005, 4000])
async def test_a_client_that_closes_its_connection_is_known_by_the_code(code: int) -> None:
    assert await listened({"type": "websocket.disconnect", "code": code}) == (True, [])


@pytest.mark.parametrize(
    "code",
    [1002, ABNORMAL, 1007, 1009, INTERNAL_ERROR, SERVICE_RESTART, CREDENTIAL_ENDED, KERNEL_GONE],
)
async def test_what_the_server_has_closed_the_client_has_not(code: int) -> None:
    assert await listened({"type": "websocket.disconnect", "code": code}) == (False, [])


async def test_a_client_whose_share_has_just_ended_is_told_so_whatever_it_sends() -> None:
    event = {"type": "websocket.receive", "bytes": b"anything"}
    has_closed, (close,) = await listened(event, permitted=False)
    assert not has_closed
    assert (close["type"], close["code"]) == ("websocket.close", KERNEL_GONE)


async def test_a_client_that_takes_nothing_is_cut_off_when_its_share_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.ws.channels.CLOSE_SECONDS", 0.01)
    kernel, cut = ScriptedKernel(), list[str]()
    coming = iter([CONNECT, {"type": "websocket.receive", "bytes": b"anything"}])

    async def receive() -> Message:
        return next(coming)

    async def send(message: Message) -> None:
        if message["type"] == "websocket.close":
            await asyncio.Event().wait()

    writer = SimpleNamespace(abort=lambda: cut.append("cut"), sends_mapped=False)
    scope = {"type": "websocket", "subprotocols": [], "extensions": {EXTENSION: writer}}
    websocket = WebSocket(scope, receive, send)
    await websocket.accept()
    connection = ChannelsConnection(
        websocket, cast(Kernel, kernel), "client", start=None, is_v1=True, limits=None
    )
    connection.is_permitted = lambda: False
    sender = sender_for(websocket, kernel.log, kernel.log.end, is_v1=True, numbered=False)
    async with asyncio.timeout(10):
        assert not await connection._listen(sender)
    assert cut == ["cut"]


async def test_a_client_that_goes_before_it_is_let_in_was_shown_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = ScriptedKernel()
    kernel.asks(kernel.send("input"), "name?")

    async def receive() -> Message:
        return CONNECT

    async def send(_: Message) -> None:
        raise OSError("the client has gone")

    websocket = WebSocket({"type": "websocket", "subprotocols": []}, receive, send)
    connection = ChannelsConnection(
        websocket, cast(Kernel, kernel), "client", start=None, is_v1=True, limits=None
    )
    await connection.run()
    assert not kernel.traffic.clients
    (prompt,) = kernel.traffic.tracker.prompts
    assert not prompt.is_shown
