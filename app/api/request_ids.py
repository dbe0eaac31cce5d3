"""The id of every request: the client's own if it is well-formed, else a new one.

Every response has it in the header ``X-Request-Id``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from ipaddress import ip_address
from random import getrandbits
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..callers import Caller, begin_call

__all__ = ["RequestIdMiddleware"]

_HEADER: Final = b"x-request-id"
_SANE: Final = re.compile(rb"[A-Za-z0-9._:/+=@~-]{1,128}")

_RESPONSES: Final = frozenset(
    {"http.response.start", "websocket.accept", "websocket.http.response.start"}
)


class RequestIdMiddleware:
    """Notes the caller of each request and WebSocket for the logs (`app.callers`)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        made_for = Caller(_request_id(scope), _address((scope.get("client") or ("",))[0]))
        begin_call(made_for)
        header = (_HEADER, made_for.request_id.encode())

        async def send_named(message: Message) -> None:
            if message["type"] in _RESPONSES:
                message["headers"] = [*message.get("headers", ()), header]
                _name_subjects(made_for, scope.get("path_params", {}))
            await send(message)

        await self._app(scope, receive, send_named)
        # If the application raises, the caller is not over yet: the error is logged for it later.
        made_for.over = True


def _request_id(scope: Scope) -> str:
    sent = [value for name, value in scope["headers"] if name == _HEADER]
    if len(sent) == 1 and _SANE.fullmatch(sent[0]):
        return str(sent[0], "ascii")
    return f"{getrandbits(128):032x}"  # no secret, and made without a call of the system


@lru_cache(256)
def _address(host: str) -> str:
    """The client's IP address; empty if it is none: a proxy may forward any text."""
    try:
        return str(ip_address(host))
    except ValueError:
        return ""


def _name_subjects(made_for: Caller, parameters: Mapping[str, Any]) -> None:
    """Note the kernel and execution that the path names, unless the route has noted others."""
    made_for.kernel_id = made_for.kernel_id or parameters.get("kernel_id")
    made_for.execution_id = made_for.execution_id or parameters.get("execution_id")
