"""What has happened to one kernel lately."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Response

from ..managers.errors import KernelNotFound
from ..managers.telemetry.reports import PastEvent
from .access import requires
from .dependencies import KernelIdDep, ManagerDep
from .openapi import errors
from .schemas import schema_of

__all__ = ["router"]

router = APIRouter(tags=["kernels"])


@router.get(
    "/api/kernels/{kernel_id}/events",
    operation_id="kernel_events_list",
    response_model=schema_of(list[PastEvent]),
    responses=errors(KernelNotFound),
    dependencies=[requires("kernels", "read")],
)
async def list_events(manager: ManagerDep, kernel_id: KernelIdDep) -> Response:
    """List what has happened to a kernel, the latest first: 50 events at the most.

    They are those of `/api/events/subscribe`, but for usage. The next server knows none of them.
    """
    past = manager.get(kernel_id).reports.past
    return Response(msgspec.json.encode([*past]), media_type="application/json")
