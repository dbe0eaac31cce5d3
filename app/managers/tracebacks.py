"""Hiding tracebacks from clients (``allow_tracebacks=False``).

An error is hidden wherever a kernel tells it: in an ``error`` on iopub, and in every reply that
reports one, the values of ``user_expressions`` included.
"""

from __future__ import annotations

from typing import Any

import msgspec

from app.protocol import v1
from app.protocol.messages import MalformedMessage, Message

__all__ = ["hide_traceback"]

_encode = msgspec.json.Encoder().encode


def hide_traceback(message: Message, replacement: str) -> Message:
    """``message``, without what it tells of an error; itself if it tells of none.

    Raises `MalformedMessage` when it has to be looked into and is not JSON.
    """
    if message.msg_type != "error" and not message.msg_type.endswith("_reply"):
        return message
    content = message.content()
    if not isinstance(content, dict):
        raise MalformedMessage(f"{message.msg_type}: content is not an object")
    hidden = (
        _hide(content, replacement)
        if message.msg_type == "error"
        else _search(content, replacement)
    )
    if not hidden:
        return message
    parts = [message.part(index) for index in range(4 + message.buffer_count)]
    frame, bounds = v1.encode(message.channel, [*parts[:3], _encode(content), *parts[4:]])
    return Message(message.channel, frame, bounds, message.header, message.parent)


def _search(content: dict[str, Any], replacement: str) -> bool:
    """Hide every error in a reply's content, in place; whether there was one."""
    hidden = content.get("status") == "error" and _hide(content, replacement)
    expressions = content.get("user_expressions")
    if isinstance(expressions, dict):
        for value in expressions.values():
            if isinstance(value, dict) and value.get("status") == "error":
                hidden = _hide(value, replacement) or hidden
    return hidden


def _hide(error: dict[str, Any], replacement: str) -> bool:
    error["ename"] = "ExecutionError"
    error["evalue"] = "Execution error"
    error["traceback"] = [replacement]
    # ipykernel adds where the error was raised.
    error.pop("engine_info", None)
    return True
