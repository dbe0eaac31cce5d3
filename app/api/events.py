"""The events resource: clients may tell events of their own to all who listen."""

from __future__ import annotations

from fastapi import APIRouter, Response

from ..managers.errors import EventSchemaReserved, InvalidEvent
from .access import requires
from .dependencies import AuditDep, EventsDep, SmallRoute
from .openapi import BODY, errors
from .requests import PostEvent

router = APIRouter(prefix="/api/events", tags=["events"], route_class=SmallRoute)


@router.post(
    "",
    operation_id="events_post",
    status_code=204,
    responses=errors(*BODY, InvalidEvent, EventSchemaReserved),
    dependencies=[requires("events", "write")],
)
async def post_event(events: EventsDep, audit: AuditDep, body: PostEvent) -> Response:
    """Tell an event to all who listen at `/api/events/subscribe`.

    Its data is held against its schema while somebody listens. The server's own schemas are not
    for clients.
    """
    version = str(body.version)
    with audit.action("event_posted", schema_id=body.schema_id, version=version):
        await events.post(body.schema_id, version, body.data, body.moment)
    return Response(status_code=204)
