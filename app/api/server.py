"""The server resource: its version and state, and what a path means to it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response

from .. import __version__
from ..managers.errors import InvalidRequest, KernelNotFound
from ..managers.processes.paths import ResolutionModel
from ..protocol.messages import format_timestamp
from .access import PUBLIC, requires
from .dependencies import ManagerDep
from .errors import note_refusal
from .openapi import ERRORS, errors
from .responses import StatusModel, VersionModel
from .schemas import schema_of

router = APIRouter(prefix="/api", tags=["server"])


@router.get(
    "",
    operation_id="server_version",
    response_model=VersionModel,
    responses=ERRORS,
    dependencies=[PUBLIC],
)
async def get_version() -> VersionModel:
    """The server's version. The one route that needs no token."""
    return VersionModel(version=__version__)


@router.get(
    "/status",
    operation_id="server_status",
    response_model=StatusModel,
    responses=ERRORS,
    dependencies=[requires("api", "read", activity=False)],
)
async def get_status(manager: ManagerDep) -> StatusModel:
    """How much the server has to do. Asking is not activity."""
    return StatusModel(
        connections=manager.connections,
        kernels=len(manager),
        last_activity=format_timestamp(manager.last_activity),
        started=format_timestamp(manager.started),
    )


@router.get(
    "/resolvePath",
    operation_id="server_resolve_path",
    response_model=schema_of(ResolutionModel),
    responses=errors(InvalidRequest),
    dependencies=[requires("api", "read", activity=False)],
)
async def resolve_path(
    request: Request,
    manager: ManagerDep,
    path: Annotated[str, Query(description="The path, as somebody saw it.")],
    kernel: Annotated[str | None, Query(description="The id of a kernel to ask too.")] = None,
) -> Response:
    """Find the file that a path means to the server, and to a kernel.

    Clients make links of the paths in tracebacks with it.
    """
    if kernel and (hidden := manager.hidden(kernel)):
        note_refusal(request, KernelNotFound.code, hidden)
    resolution = await manager.resolve_path(path, kernel)
    return Response(msgspec.json.encode(resolution), media_type="application/json")
