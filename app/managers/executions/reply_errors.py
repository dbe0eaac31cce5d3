"""Errors that are in a kernel's reply, and not on iopub.

ipykernel publishes no ``error`` if custom exception handlers or other traceback printers show it,
if the traceback cannot be encoded, or if a magic is unknown.
"""

from __future__ import annotations

from ...protocol.compose import make_message
from ...protocol.messages import Message
from .contents import content_of
from .execution import Execution

__all__ = ["output_of"]


def output_of(execution: Execution, message: Message) -> Message:
    """The output that a message stands for: the message itself, or an ``error`` for a reply.

    An error reply is returned as it is, and so makes no output, if the error is on iopub too.
    """
    if message.msg_type != "execute_reply" or execution.has_error:
        return message
    content = content_of(message)
    if content.get("status") != "error":
        return message
    told = {name: content.get(name) for name in ("ename", "evalue", "traceback")}
    error = make_message("iopub", "error", told, session=message.header.session or "")
    error.seq = message.seq
    return error
