"""Sending where the server offers no more than plain ASGI."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.managers.log.entries import Position
from app.managers.log.message_log import MessageLog
from app.protocol.compose import make_message
from app.ws.sending import sender_for


async def test_what_could_not_be_written_has_not_arrived(tmp_path: Path) -> None:
    written: list[Message] = []

    async def receive() -> Message:
        return {"type": "websocket.connect"}

    async def send(event: Message) -> None:
        if len(written) == 3:
            raise OSError
        written.append(event)

    websocket = WebSocket({"type": "websocket", "headers": []}, receive, send)
    await websocket.accept()
    start, middle, end = Position(1, 0), Position(2, 0), Position(4, 0)
    log = MessageLog(tmp_path, "kernel")
    sender = sender_for(websocket, log, start, is_v1=True, numbered=False)
    assert sender.arrived(end) == start
    message = make_message("iopub", "stream", {"name": "stdout", "text": "1"}, session="s")
    await sender.send([message], middle)
    assert sender.arrived(end) == middle
    with pytest.raises(WebSocketDisconnect):
        await sender.send([message, message], end)
    assert sender.arrived(end) == middle
