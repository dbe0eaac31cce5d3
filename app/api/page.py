"""The page: files that a browser shows and runs, as `scripts/page` has built them into app/web/.

The files hold no data, so they need no token; the page asks for one, and shows it with each request
of its own. Addresses in the files are relative, so that the page works behind any prefix.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import Any, Final

from fastapi import APIRouter, Request
from starlette.responses import Response

from .access import PUBLIC

__all__ = ["page_router"]

_BUILT: Final = Path(__file__).parents[1] / "web"

_MEDIA_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data: blob:; media-src data: blob:; font-src 'self'; frame-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
)

_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Vary": "Accept-Encoding",
}

_FOREVER: Final = "public, max-age=31536000, immutable"
"""The ``Cache-Control`` of a file whose name has a digest of its content."""


def page_router() -> APIRouter:
    """The routes of the page: ``/``, and one for each of its files, as these need no token."""
    router = APIRouter(include_in_schema=False, dependencies=[PUBLIC])
    router.add_api_route("/", _route_of(_BUILT / "index.html", "no-cache"), name="page")
    for file in sorted((_BUILT / "page").iterdir()):
        path = f"/page/{file.name}"
        router.add_api_route(path, _route_of(file, _FOREVER), name=path)
    return router


def _route_of(file: Path, lasting: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    headers = {**_HEADERS, "Cache-Control": lasting}
    media_type = _MEDIA_TYPES[file.suffix]

    async def serve(request: Request) -> Response:
        plain, compressed = _content(file)
        if "gzip" in request.headers.get("accept-encoding", ""):
            answer = Response(compressed, headers={**headers, "Content-Encoding": "gzip"})
        else:
            answer = Response(plain, headers=headers)
        answer.headers["Content-Type"] = media_type
        return answer

    return serve


@cache
def _content(file: Path) -> tuple[bytes, bytes]:
    """A file as it is, and compressed. It is read once: the files are few and small."""
    plain = file.read_bytes()
    return plain, gzip.compress(plain, mtime=0)
