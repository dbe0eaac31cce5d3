"""The messages of a kernel: its log, a page at a time or as a stream."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from ..managers.errors import AfterBeyondEnd, InvalidRequest, KernelNotFound, StaleEpoch
from .access import requires
from .dependencies import KernelDep, ManagerDep, PermissionDep
from .log_pages import MessagesModel, follow_log, page
from .openapi import errors, stream_of
from .schemas import schema_of
from .streams import (
    NDJSON,
    SSE,
    AfterDep,
    EventStream,
    JSONLines,
    LastEventIdDep,
    resume_after,
    wants,
    while_permitted,
)

router = APIRouter(prefix="/api/kernels/{kernel_id}/messages", tags=["messages"])


@router.get(
    "",
    operation_id="messages_list",
    response_model=schema_of(MessagesModel),
    responses={
        200: {
            "description": "A page, or what the `Accept` header asks for: a stream. Each "
            "`data` field, or line, is a `LogEventModel`.",
            "content": {SSE: stream_of("LogEventModel"), NDJSON: stream_of("LogEventModel")},
        },
        **errors(InvalidRequest, AfterBeyondEnd, KernelNotFound, StaleEpoch),
    },
    dependencies=[requires("kernels", "read")],
)
async def list_messages(
    request: Request,
    manager: ManagerDep,
    kernel: KernelDep,
    permission: PermissionDep,
    after: AfterDep = None,
    limit: Annotated[int, Query(ge=1, le=1000, description="Of a page: how many.")] = 100,
    epoch: Annotated[
        str | None, Query(description="The log's epoch that `after` is a number of.")
    ] = None,
    last_event_id: LastEventIdDep = None,
) -> Response:
    """Read what a kernel has said to all its clients, from the beginning or behind a number.

    With `Accept: text/event-stream` or `application/x-ndjson` it goes on with what the kernel says,
    until the kernel is gone.
    """
    log = kernel.traffic.log
    start = resume_after(after, last_event_id) or 0
    kind = wants(request)
    if kind is None:
        found = await page(log, start, limit, epoch)
        return Response(msgspec.json.encode(found), media_type="application/json")
    keepalive = manager.settings.stream_keepalive
    every = follow_log(kernel.executions, log, start, keepalive, permission, epoch)
    events = while_permitted(every, permission)
    return EventStream(events) if kind == SSE else JSONLines(events)
