"""The path of a request: below the prefix of a proxy or not, and written in one way only."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["PathMiddleware"]


class PathMiddleware:
    """Gives each request the path that it is routed by.

    A word of the service's own (``words``) counts only as it is written, not percent-encoded:
    ``/api/%6bernels`` is not ``/api/kernels``, or a rule of a proxy for the one would be passed by
    with the other. Names (of kernelspecs, for one) may be encoded.

    Requests come with the prefix and without: some proxies strip it, some do not. ASGI wants
    ``path`` to have it either way, and ``root_path`` to tell it.
    """

    def __init__(self, app: ASGIApp, prefix: str, words: Collection[str]) -> None:
        self._app = app
        self._prefix = prefix
        self._words = frozenset(words)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "lifespan":
            path: str = scope["path"]
            if b"%" in (scope.get("raw_path") or b""):
                path = self._decoded(scope["raw_path"].decode("latin-1"))
                scope = {**scope, "path": path}
            if self._prefix:
                if path != self._prefix and not path.startswith(f"{self._prefix}/"):
                    path = self._prefix + path
                scope = {**scope, "root_path": self._prefix, "path": path}
        await self._app(scope, receive, send)

    def _decoded(self, raw_path: str) -> str:
        return "/".join(map(self._decoded_segment, raw_path.split("/")))

    def _decoded_segment(self, raw: str) -> str:
        segment = unquote(raw)
        return raw if segment != raw and segment in self._words else segment
