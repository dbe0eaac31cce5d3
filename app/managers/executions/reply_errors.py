"""Errors that a kernel tells of in its reply alone.

ipykernel publishes no ``error`` where something else shows it, as handlers of custom exceptions and
other printers of tracebacks do; nor for a traceback that cannot be encoded, or an unknown magic.
"""

from __future__ import annotations

from ...protocol.compose import make_message
from ...protocol.messages import Message
from .contents import content_of
from .execution import Execution

__all__ = ["output_of"]


def output_of(execution: Execution, message: Message) -> Message:
    """What a message of an execution shows: the ``error`` that its reply stands for, or itself.

    A reply stands for nothing when the kernel has published the error as well.
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
