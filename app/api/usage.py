"""What a kernel uses of the machine, in two forms: this server's, and jupyter-resource-usage's."""

from __future__ import annotations

import os
from socket import gethostname
from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Response
from msgspec import Meta

from ..managers.errors import KernelNotFound
from ..managers.kernels.usage import KernelUsage
from ..managers.processes.hosts.errors import NO_KEEPER
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
    usage = await manager.measuring.usage(kernel_id, history=history)
    return Response(_encode(usage), media_type="application/json")


router.add_api_route(
    "/api/kernels/{kernel_id}/usage",
    get_usage,
    methods=["GET"],
    operation_id="usage_get",
    response_model=schema_of(KernelUsage),
    responses=errors(KernelNotFound, *NO_KEEPER),
    dependencies=[requires("kernels", "read")],
)


class ResourceUsage(msgspec.Struct, omit_defaults=True):
    """A kernel's usage as JupyterLab's extension jupyter-resource-usage reads it."""

    reason: Annotated[
        str | None, Meta(description="`no_kernel` if the kernel has no process here; else absent.")
    ] = None
    hostname: Annotated[str | None, Meta(description="The host of the process.")] = None
    pid: Annotated[int | None, Meta(description="The process.")] = None
    kernel_cpu: Annotated[
        float | None, Meta(description="Of one processor, in percent, since the last sample.")
    ] = None
    kernel_memory: Annotated[int | None, Meta(description="Bytes of memory.")] = None
    cpu_count: Annotated[int | None, Meta(description="Processors of the host.")] = None
    host_usage_flag: Annotated[
        bool | None,
        Meta(description="Always false: what others use of the host is not for everybody."),
    ] = None


class ResourceUsageReply(msgspec.Struct):
    """The answer that JupyterLab's extension jupyter-resource-usage expects."""

    kernel_id: Annotated[str, Meta(description="The kernel's id.")]
    content: ResourceUsage


async def get_resource_usage(manager: ManagerDep, kernel_id: KernelIdDep) -> Response:
    """What a kernel uses of the machine, for JupyterLab's extension jupyter-resource-usage."""
    usage = await manager.measuring.usage(kernel_id)
    if usage.pid is None:
        content = ResourceUsage(reason="no_kernel")
    else:
        content = ResourceUsage(
            hostname=gethostname(),
            pid=usage.pid,
            kernel_cpu=round(100 * (usage.cpu or 0.0), 1),
            kernel_memory=usage.memory,
            cpu_count=os.cpu_count(),
            host_usage_flag=False,
        )
    reply = ResourceUsageReply(kernel_id, content)
    return Response(_encode(reply), media_type="application/json")


router.add_api_route(
    "/api/metrics/v1/kernel_usage/get_usage/{kernel_id}",
    get_resource_usage,
    methods=["GET"],
    operation_id="resource_usage_get",
    response_model=schema_of(ResourceUsageReply),
    responses=errors(KernelNotFound, *NO_KEEPER),
    dependencies=[requires("kernels", "read")],
    route_class_override=PolledRoute,
)
