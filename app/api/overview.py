"""The overview: all kernels of the caller with what each does and takes, once or as it changes."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request, Response

from ..managers.kernels.overview import KernelEvent, Overview
from .access import requires
from .dependencies import ManagerDep
from .openapi import ERRORS, stream_of
from .schemas import schema_of
from .streams import NDJSON, SSE, EventStream, JSONLines, wants

__all__ = ["router"]

router = APIRouter(prefix="/api/overview", tags=["kernels"])


@router.get(
    "",
    operation_id="overview_list",
    response_model=schema_of(list[KernelEvent]),
    responses={
        200: {
            "description": "All kernels, or what the `Accept` header asks for: a stream. Each "
            "`data` field, or line, is an `OverviewEventModel`.",
            "content": {
                SSE: stream_of("OverviewEventModel"),
                NDJSON: stream_of("OverviewEventModel"),
            },
        },
        **ERRORS,
    },
    dependencies=[requires("kernels", "read", activity=False)],
)
async def list_overview(request: Request, manager: ManagerDep) -> Response:
    """Look at all one's kernels at once: the state of each and since when, what it runs, its log,
    and what it uses of the machine.

    With `Accept: text/event-stream` or `application/x-ndjson` it goes on with what changes, within
    a second. A stream tells every kernel first. While there is a stream, kernels are measured.
    Asking is not activity.
    """
    overview = Overview(manager)
    kind = wants(request)
    if kind is None:
        await manager.refresh()
        rows = [row for _, row in overview.rows()]
        return Response(msgspec.json.encode(rows), media_type="application/json")
    events = overview.follow(manager.settings.stream_keepalive)
    return EventStream(events) if kind == SSE else JSONLines(events)
