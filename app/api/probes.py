"""The probes of whoever runs the server: does it live, and may work be sent to it.

They are open to everybody and whatever the Host, as an orchestrator knows a server by its address
only, and they tell nothing but yes or no.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from .access import PROBE
from .readiness import Readiness

# Not in the OpenAPI document: no client of the service calls them.
router = APIRouter(include_in_schema=False, dependencies=[PROBE])

_NEVER_KEPT = {"Cache-Control": "no-store"}


@router.get("/livez", name="livez")
async def live() -> Response:
    """The event loop answers."""
    return PlainTextResponse("ok\n", headers=_NEVER_KEPT)


@router.get("/readyz", name="readyz")
async def ready(request: Request) -> Response:
    """200 if a kernel could be started now, else 503."""
    readiness: Readiness = request.state.readiness
    if await readiness.check():
        return PlainTextResponse("ok\n", headers=_NEVER_KEPT)
    return PlainTextResponse("not ready\n", 503, headers=_NEVER_KEPT)
