"""Conditional GET: an ``ETag`` on every whole response, and 304 when the client has it."""

from __future__ import annotations

from hashlib import sha1

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["ETagMiddleware"]


class ETagMiddleware:
    """Tags successful GET responses that come in one piece; others pass untouched.

    Clients poll lists of kernels, and what has not changed need not travel.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        known = Headers(scope=scope).get("if-none-match", "")
        start: Message | None = None

        async def send_tagged(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start" and message["status"] == 200:
                start = message
                return
            if start is None:
                await send(message)
                return
            begun, start = start, None
            if not message.get("more_body"):
                headers = MutableHeaders(raw=list(begun["headers"]))
                body = message.get("body", b"")
                etag = headers.setdefault(
                    "ETag", f'"{sha1(body, usedforsecurity=False).hexdigest()}"'
                )
                if etag in (tag.strip().removeprefix("W/") for tag in known.split(",")):
                    del headers["content-length"]
                    begun["status"], message = 304, {**message, "body": b""}
                begun["headers"] = headers.raw
            await send(begun)
            await send(message)

        await self._app(scope, receive, send_tagged)
