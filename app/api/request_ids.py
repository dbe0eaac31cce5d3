"""The id of every request: the client's own if it is sane, else a new one; told in the response."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import ip_address
from secrets import token_hex
from typing import Final

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
        made_for = Caller(_request_id(scope), _address((scope.get("client") or ("",))[0]))
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
    return token_hex(16)


@lru_cache(256)
def _address(host: str) -> str:
    """The client's IP address. What a proxy forwards may be anything."""
    try:
        return str(ip_address(host))
    except ValueError:
        return ""


def _location(headers: list[tuple[bytes, bytes]]) -> str:
    return next((value.decode("latin-1") for name, value in headers if name == b"location"), "")
