"""The probes of an orchestrator or load balancer: is the server alive, may it be sent work.

They need no token and no known Host header, since an orchestrator knows a server only by its
address. They tell nothing but yes or no.
"""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import PlainTextResponse, Response

from .access import PROBE
from .readiness import Readiness

# They are not in the OpenAPI document, for no client of the service calls them.
router = APIRouter(include_in_schema=False, dependencies=[PROBE])

_NEVER_KEPT = {"Cache-Control": "no-store"}


@router.get("/livez", name="livez")
async def live() -> Response:
    """200 as long as the event loop answers."""
    return PlainTextResponse("ok\n", headers=_NEVER_KEPT)


@router.get("/readyz", name="readyz")
async def ready(request: Request) -> Response:
    """200 if a kernel could be started now, else 503."""
    readiness: Readiness = request.state.readiness
    if await readiness.check():
        return PlainTextResponse("ok\n", headers=_NEVER_KEPT)
    return PlainTextResponse("not ready\n", 503, headers=_NEVER_KEPT)
