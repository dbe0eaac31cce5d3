"""Brings the path of a request into one form: with the proxy's prefix, and decoded one way."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["PathMiddleware"]


class PathMiddleware:
    """Gives each request the path by which it is routed.

    The service's own ``words`` must not be percent-encoded: ``/api/%6bernels`` is not
    ``/api/kernels``. Otherwise a client could evade a proxy's rule for one spelling with the other.
    Parameters, such as names of kernelspecs, may be encoded.

    Some proxies strip their prefix from the path, and some do not. In ASGI, ``path`` has the prefix
    in any case, and ``root_path`` tells it.
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
