"""Code that clients without a WebSocket have executed, and the `execute_request`s made of it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from ...protocol.messages import ClientMessage, Header, new_header
from ...settings import Settings
from ..errors import TimeoutTooLong
from .execution import Execution

__all__ = ["Code", "execute_request", "held_request", "timeout_of"]


class Code(msgspec.Struct, frozen=True):
    """Code to execute: the fields of an ``execute_request``, and more.

    ``timeout`` is how many seconds the code may run. ``queue`` is the name of the queue in which it
    waits, or None for the caller's own. ``if_generation`` is the generation of the kernel's process
    that it must run in, if any.
    """

    code: str
    silent: bool = False
    store_history: bool = True
    user_expressions: Mapping[str, str] = {}
    allow_stdin: bool = False
    stop_on_error: bool = True
    timeout: float | None = None
    queue: str | None = None
    if_generation: int | None = None


def held_request(execution: Execution) -> ClientMessage:
    """The request of an execution that the server holds."""
    steering = Header(execution.id, "execute_request", execution.session)
    return ClientMessage("shell", steering, execution.held)


def timeout_of(asked: float | None, settings: Settings) -> float | None:
    """How many seconds code may run; None without bound. Raises `TimeoutTooLong`."""
    longest = settings.execution_timeout_max
    if asked is None:
        return settings.execution_timeout_default or longest or None
    if longest and asked > longest:
        raise TimeoutTooLong(f"timeout: must be at most {longest:g} s")
    return asked


def execute_request(code: Code, session: str, msg_id: str) -> ClientMessage:
    """The ``execute_request`` of a session for this code."""
    header = new_header("execute_request", session, msg_id)
    content = {
        "code": code.code,
        "silent": code.silent,
        "store_history": code.store_history,
        "user_expressions": code.user_expressions,
        "allow_stdin": code.allow_stdin,
        "stop_on_error": code.stop_on_error,
    }
    parts = [msgspec.json.encode(header), b"{}", b"{}", msgspec.json.encode(content)]
    steering = Header(header["msg_id"], "execute_request", session)
    return ClientMessage("shell", steering, parts)
