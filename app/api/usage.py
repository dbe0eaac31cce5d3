"""What a kernel uses of the machine, in two forms: this server's, and jupyter-resource-usage's."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response

from ..managers.errors import KeeperUnavailable, KernelNotFound
from ..managers.kernels.usage import KernelUsage
from .access import requires
from .dependencies import KernelIdDep, ManagerDep, PolledRoute
from .openapi import errors
from .schemas import schema_of

__all__ = ["router"]

router = APIRouter(tags=["kernels"])

_encode = msgspec.json.Encoder().encode


async def get_usage(
    manager: ManagerDep,
    kernel_id: KernelIdDep,
    history: Annotated[
        bool, Query(description="Whether the last ten minutes are to be told, too.")
    ] = False,
) -> Response:
    """What a kernel uses of the machine: processors, memory, processes, files; and its limits.

    A sample is at most a second old.
    """
    usage = await manager.usage(kernel_id, history=history)
    return Response(_encode(usage), media_type="application/json")


router.add_api_route(
    "/api/kernels/{kernel_id}/usage",
    get_usage,
    methods=["GET"],
    operation_id="usage_get",
    response_model=schema_of(KernelUsage),
    responses=errors(KernelNotFound, KeeperUnavailable),
    dependencies=[requires("kernels", "read")],
    route_class_override=PolledRoute,
)
