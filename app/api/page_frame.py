"""The document in which the page runs what kernels have put out: HTML, SVG and JavaScript.

A browser gives the document an origin of its own wherever it is shown, as its policy has `sandbox`.
The document has no network: the page hands it what is to be shown. The page's own policy would
forbid the script of this document.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import APIRouter, Response

from .access import PUBLIC

__all__ = ["FRAME_POLICY", "frame_router"]

_DOCUMENT: Final = Path(__file__).parents[1] / "web" / "frame.html"

FRAME_POLICY: Final = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'unsafe-inline'; img-src data: blob:; media-src data: blob:; font-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self'"
)
"""The policy of the document: scripts and styles in its own text, pictures in it, nothing else."""

_HEADERS: Final = {
    "Content-Security-Policy": FRAME_POLICY,
    "Cache-Control": "no-cache",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": (
        "accelerometer=(), autoplay=(), camera=(), clipboard-read=(), clipboard-write=(), "
        "display-capture=(), fullscreen=(), geolocation=(), gyroscope=(), microphone=(), midi=(), "
        "payment=(), screen-wake-lock=(), usb=(), xr-spatial-tracking=()"
    ),
    "Referrer-Policy": "no-referrer",
    "X-DNS-Prefetch-Control": "off",
}


def frame_router() -> APIRouter:
    """The route of the document. It holds no data, and needs no token."""
    document = _DOCUMENT.read_bytes()
    router = APIRouter(include_in_schema=False, dependencies=[PUBLIC])

    async def frame() -> Response:
        return Response(document, headers=_HEADERS, media_type="text/html")

    router.add_api_route("/page/frame", frame, name="page_frame")
    return router
