"""Making messages: those that the server says in a kernel's place, and its own requests."""

from __future__ import annotations

from typing import Any

import msgspec

from . import v1
from .messages import Buffer, Header, Message, decode_header, new_header

__all__ = ["make_message", "make_parts"]

_encode = msgspec.json.Encoder().encode


def make_message(
    channel: str,
    msg_type: str,
    content: dict[str, Any] | Buffer,
    *,
    session: str,
    parent: Buffer = b"{}",
    metadata: Buffer = b"{}",
) -> Message:
    """A message for clients. ``content`` may be JSON already.

    ``parent`` is the raw header of the request that the message answers. ``session`` should be the
    session of the kernel's own messages, if that is known: when a message of another session comes,
    JupyterLab takes the kernel for a new one, and drops messages that it has not handled yet.
    """
    header = new_header(msg_type, session)
    body = _encode(content) if isinstance(content, dict) else content
    frame, _ = v1.encode(channel, (_encode(header), parent, metadata, body))
    steering = Header(msg_id=header["msg_id"], msg_type=msg_type, session=session)
    return Message(channel, frame, steering, decode_header(parent, "parent_header"))


def make_parts(msg_type: str, content: dict[str, Any], session: str) -> tuple[Header, list[Buffer]]:
    """A request for a kernel: its decoded header and its four JSON parts."""
    header = new_header(msg_type, session)
    steering = Header(msg_id=header["msg_id"], msg_type=msg_type, session=session)
    return steering, [_encode(header), b"{}", b"{}", _encode(content)]
