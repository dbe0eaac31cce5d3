"""Messages of a kernel that there is not, for tests of what is made of messages."""

from __future__ import annotations

import json
from typing import Any

from app.protocol import v1
from app.protocol.compose import make_message
from app.protocol.messages import Header, Message


def request_header(msg_id: str, msg_type: str = "execute_request", session: str = "me") -> bytes:
    """The raw header of a request."""
    return json.dumps({"msg_id": msg_id, "msg_type": msg_type, "session": session}).encode()


def said(
    msg_type: str,
    content: dict[str, Any],
    *,
    parent: str = "request",
    channel: str = "iopub",
    seq: int = 0,
) -> Message:
    """What a kernel says of the execution ``parent``."""
    message = make_message(
        channel, msg_type, content, session="kernel", parent=request_header(parent)
    )
    message.seq = seq
    return message


def said_raw(msg_type: str, content: bytes) -> Message:
    """The same with a content that may be no JSON."""
    frame, _ = v1.encode("iopub", (b"{}", request_header("request"), b"{}", content))
    header = Header("of the kernel", msg_type, "kernel")
    return Message("iopub", frame, header, Header("request", "execute_request", "me"))


def stream(text: str, name: str = "stdout") -> Message:
    """Text on a stream."""
    return said("stream", {"name": name, "text": text})


def display(
    data: dict[str, Any], display_id: str | None = None, msg_type: str = "display_data"
) -> Message:
    """Something to show, or an update of it."""
    transient = {} if display_id is None else {"display_id": display_id}
    return said(msg_type, {"data": data, "metadata": {}, "transient": transient})
