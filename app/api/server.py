"""The server itself: its version and its state."""

from __future__ import annotations

from fastapi import APIRouter

from app import __version__
from app.api.access import PUBLIC, requires
from app.api.dependencies import ERRORS, ManagerDep
from app.api.models import StatusModel, VersionModel
from app.protocol.messages import format_timestamp

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
