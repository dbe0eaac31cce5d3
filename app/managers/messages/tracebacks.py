"""Hiding tracebacks from clients (``allow_tracebacks=False``).

An error is hidden wherever a kernel tells it: in an ``error`` on iopub, and in every reply that
reports one, the values of ``user_expressions`` included.
"""

from __future__ import annotations

import json
from typing import Any, Final

from ...protocol import v1
from ...protocol.messages import Message

__all__ = ["hide_traceback"]

_KEPT: Final = ("status", "execution_count", "payload", "user_expressions")
"""The fields that are left in an error reply. Kernels add others, which may tell of the error."""


def hide_traceback(message: Message, replacement: str) -> Message:
    """``message`` with ``replacement`` in place of every error; itself if it has no error."""
    error = {"ename": "ExecutionError", "evalue": "Execution error", "traceback": [replacement]}
    if message.msg_type == "error":
        content: bytes | None = json.dumps(error).encode()
    elif message.msg_type.endswith("_reply"):
        content = _without_errors(message, error)
    else:
        return message
    if content is None:
        return message
    parts = [message.part(index) for index in range(4 + message.buffer_count)]
    frame, _ = v1.encode(message.channel, [*parts[:3], content, *parts[4:]])
    return Message(message.channel, frame, message.header, message.parent)


def _without_errors(reply: Message, error: dict[str, Any]) -> bytes | None:
    """The content of a reply with ``error`` in place of each error; None if it has no error.

    Content that is not JSON becomes an error too, as its client waits for a reply.
    """
    try:
        # The json module rather than msgspec, which refuses the NaN and the lone surrogates that
        # Python kernels send.
        content = json.loads(str(reply.part(3), "utf-8"))
        found = _replace_errors(content, error)
        return json.dumps(found).encode() if found is not None else None
    except (ValueError, RecursionError):
        return json.dumps({"status": "error", **error}).encode()


def _replace_errors(content: Any, error: dict[str, Any]) -> dict[str, Any] | None:
    if not isinstance(content, dict):
        raise ValueError("content is not an object")
    found = content.get("status") == "error"
    if found:
        content = {name: content[name] for name in _KEPT if name in content} | error
    expressions = content.get("user_expressions")
    if isinstance(expressions, dict):
        for name, value in expressions.items():
            if isinstance(value, dict) and value.get("status") == "error":
                expressions[name] = {"status": "error", **error}
                found = True
    return content if found else None
