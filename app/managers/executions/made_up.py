"""A reply in place of one that the kernel has not sent, made of the messages on iopub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...protocol.messages import Message
from ..log.message_log import MessageLog, Position
from .contents import content_of, count_of
from .execution import Execution
from .history import WholeReader

__all__ = ["reply_made_of_iopub"]


def reply_made_of_iopub(log: MessageLog, execution: Execution) -> dict[str, Any]:
    """The content of an ``execute_reply``: the execution count, and the error if there was one.

    The values of ``user_expressions`` are not published, so they are left empty.
    """
    # All that belongs to the execution is in the log by now: it ends because no more can come.
    count: int | None = None
    began = others_failed = False
    for message in _messages(log, execution.place):
        if message.msg_type == "error" and message.parent.msg_id != execution.id:
            others_failed = others_failed or not began
        if message.parent.msg_id != execution.id:
            continue
        if message.msg_type == "execute_input":
            began = True
            count = count_of(content_of(message).get("execution_count"))
        elif message.msg_type == "error":
            error = content_of(message)
            return {"status": "error", "execution_count": count, **error}
    if others_failed and not began:
        # Kernels abort the requests in their queue when an execution before them fails.
        return {"status": "aborted"}
    return {
        "status": "ok",
        "execution_count": count,
        "user_expressions": {},
        "payload": [],
    }


def _messages(log: MessageLog, start: Position) -> Iterator[Message]:
    reader = WholeReader(log, start)
    while reader.behind:
        yield from (entry.message for entry in reader.take().entries)
