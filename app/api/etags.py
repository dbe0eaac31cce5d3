"""Conditional GET: an ``ETag`` on every whole response, and 304 when the client has it."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha1
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .heads import first

__all__ = ["ETagMiddleware"]

MAX_REMEMBERED_BYTES: Final = 2**18
"""The largest body whose tag is remembered; its body is remembered, too."""


class ETagMiddleware:
    """Tags successful GET responses that come in one piece; others pass unchanged.

    Clients poll the list of kernels; a list that has not changed need not be sent again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        known = first(scope["headers"], b"if-none-match")
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
                body = message.get("body", b"")
                etag = first(begun["headers"], b"etag")
                if not etag:
                    etag = _etag(body)
                    begun["headers"] = [*begun["headers"], (b"etag", etag)]
                if known and etag in _listed(known):
                    begun["status"], message = 304, {**message, "body": b""}
                    headers = begun["headers"]
                    begun["headers"] = [each for each in headers if each[0] != b"content-length"]
            await send(begun)
            await send(message)

        await self._app(scope, receive, send_tagged)


def _listed(known: bytes) -> list[bytes]:
    return [tag.strip().removeprefix(b"W/") for tag in known.split(b",")]


def _etag(body: bytes) -> bytes:
    return _remembered_etag(body) if len(body) <= MAX_REMEMBERED_BYTES else _new_etag(body)


def _new_etag(body: bytes) -> bytes:
    return f'"{sha1(body, usedforsecurity=False).hexdigest()}"'.encode()


# A polled body is mostly the very same object, whose hash Python caches: a lookup costs little.
_remembered_etag = lru_cache(32)(_new_etag)
