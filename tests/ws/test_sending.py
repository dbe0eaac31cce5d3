"""Sending by plain ASGI, and large frames by an extension that sends them from a mapped file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest
from starlette.types import Message, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from app.managers.log.entries import Position
from app.managers.log.large_frames import Large
from app.managers.log.message_log import MessageLog
from app.protocol import v1
from app.protocol.compose import make_message
from app.protocol.messages import Buffer
from app.protocol.messages import Message as KernelMessage
from app.ws.sending import EXTENSION, sender_for
from app.ws.uvicorn_protocol import KernelkeepWebSocketProtocol


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


class Writer:
    """A `FrameWriter` that notes what is written."""

    acknowledged = None
    join = staticmethod(KernelkeepWebSocketProtocol.join)
    binary = staticmethod(KernelkeepWebSocketProtocol.binary)

    def __init__(self, *, sends_mapped: bool) -> None:
        self.sends_mapped = sends_mapped
        self.written: list[Buffer] = []

    async def write(self, chunks: Sequence[Buffer], place: Position | None = None) -> None:
        self.written += chunks


def connected(writer: Writer) -> WebSocket:
    async def nothing(*_: object) -> Message:
        return {"type": "websocket.connect"}

    scope = {"type": "websocket", "headers": [], "extensions": {EXTENSION: writer}}
    return WebSocket(scope, nothing, cast(Send, nothing))


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_mapped_frame_is_written_as_it_is_between_others(tmp_path: Path, at: int) -> None:
    writer, log = Writer(sends_mapped=True), MessageLog(tmp_path, "kernel")
    sender = sender_for(connected(writer), log, Position(1, 0), is_v1=True, numbered=False)
    assert sender.large is Large.MAPPED
    content = memoryview(b'{"text":"%s"}' % (b"x" * 70_000))
    frame, bounds = v1.encode("iopub", [b'{"msg_type":"stream"}', b"{}", b"{}", content])
    large = KernelMessage("iopub", frame[: bounds[4]])
    large.rest = (content,)
    small = make_message("iopub", "stream", {"text": "small"}, session="s")
    messages = [small, small]
    messages.insert(at, large)

    await sender.send(messages, Position(4, 0))

    assert any(chunk is content for chunk in writer.written), "it was not copied"
    everything = [(small.frame, False), (small.frame, False)]
    everything.insert(at, (frame, False))
    assert b"".join(writer.written) == b"".join(writer.join(everything))


@pytest.mark.parametrize(
    ("sends_mapped", "is_v1", "numbered"),
    [(False, True, False), (True, True, True), (True, False, False), (True, False, True)],
)
async def test_a_frame_that_has_to_be_read_is_not_mapped(
    tmp_path: Path, sends_mapped: bool, is_v1: bool, numbered: bool
) -> None:
    writer, log = Writer(sends_mapped=sends_mapped), MessageLog(tmp_path, "kernel")
    place = Position(1, 0)
    sender = sender_for(connected(writer), log, place, is_v1=is_v1, numbered=numbered)
    assert sender.large is Large.WHOLE
