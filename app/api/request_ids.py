"""The id of every request: the client's own if it is sane, else a new one; told in the response."""

from __future__ import annotations

import re
from typing import Final
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.callers import Caller, begin_call

__all__ = ["RequestIdMiddleware"]

_HEADER: Final = b"x-request-id"
_SANE: Final = re.compile(rb"[A-Za-z0-9._:/+=@~-]{1,128}")

_RESPONSES: Final = frozenset(
    {"http.response.start", "websocket.accept", "websocket.http.response.start"}
)


class RequestIdMiddleware:
    """Names the caller for all that is done for a request or a WebSocket (`app.callers`)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        client = scope.get("client")
        made_for = Caller(_request_id(scope), client[0] if client else "")
        begin_call(made_for)
        header = (_HEADER, made_for.request_id.encode())

        async def send_named(message: Message) -> None:
            if message["type"] in _RESPONSES:
                headers = [*message.get("headers", ()), header]
                made_for.location = _location(headers)
                message["headers"] = headers
            await send(message)

        await self._app(scope, receive, send_named)
        # Not when it fails: that is still to be logged.
        made_for.over = True


def _request_id(scope: Scope) -> str:
    sent = [value for name, value in scope["headers"] if name == _HEADER]
    if len(sent) == 1 and _SANE.fullmatch(sent[0]):
        return str(sent[0], "ascii")
    return uuid4().hex


def _location(headers: list[tuple[bytes, bytes]]) -> str:
    return next((value.decode("latin-1") for name, value in headers if name == b"location"), "")
