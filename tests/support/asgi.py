"""ASGI applications without a server: what a middleware passes on, and what it sends."""

from __future__ import annotations

from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Answer", "ask", "scope"]


def scope(path: str = "/", **more: Any) -> Scope:
    """The scope of a GET request; ``headers`` are pairs of texts."""
    headers = [(name.encode(), value.encode()) for name, value in more.pop("headers", ())]
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "headers": headers,
        "client": ("127.0.0.1", 4711),
        **more,
    }


class Answer:
    """An application that answers each request with a body, in as many pieces as it is given in.

    ``scopes`` are those that it was called with.
    """

    def __init__(
        self, *pieces: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.scopes: list[Scope] = []
        self._pieces = pieces or (b"",)
        self._status = status
        self._headers = [(k.lower().encode(), v.encode()) for k, v in (headers or {}).items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        if scope["type"] == "lifespan":
            return
        start = {"type": "http.response.start", "status": self._status}
        await send({**start, "headers": [*self._headers]})
        *first, last = self._pieces
        for piece in first:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": last})


async def ask(app: ASGIApp, asked: Scope) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers and the whole body with which an application answers."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(asked, receive, send)
    if not sent:  # as in a lifespan
        return 0, {}, b""
    start, *bodies = sent
    headers = {name.decode().lower(): value.decode() for name, value in start["headers"]}
    return start["status"], headers, b"".join(body["body"] for body in bodies)
