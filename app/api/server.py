"""The server resource: its version and state, and what a path means to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Request, Response

from .. import __version__
from ..managers.errors import InvalidRequest, KernelNotFound
from ..managers.kernels.listing import Listing
from ..managers.processes.paths import ResolutionModel
from ..protocol.messages import format_timestamp
from .access import PUBLIC, requires
from .dependencies import ManagerDep
from .errors import note_refusal
from .openapi import ERRORS, errors
from .parts import others_of
from .responses import ReplicaModel, StatusModel, VersionModel
from .schemas import schema_of

if TYPE_CHECKING:
    from ..managers.replicas.group import Group

__all__ = ["replicas_of", "router"]

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


class _Status(msgspec.Struct):
    """What each replica tells of itself, with times that sort as text."""

    connections: int
    last_activity: str
    started: str


_status = msgspec.json.Decoder(_Status).decode


@router.get(
    "/status",
    operation_id="server_status",
    response_model=StatusModel,
    response_model_exclude_defaults=True,
    responses=ERRORS,
    dependencies=[requires("api", "read", activity=False)],
)
async def get_status(request: Request, manager: ManagerDep) -> StatusModel:
    """How much the server has to do, or all replicas together. Asking is not activity."""
    others, listing = others_of(request), manager.listing
    elsewhere = [] if others is None else (await others.ask(request, _status)).values()
    own = _Status(
        manager.connections,
        format_timestamp(manager.last_activity),
        format_timestamp(manager.started),
    )
    return StatusModel(
        connections=own.connections + sum(one.connections for one in elsewhere),
        kernels=len(listing) + (0 if others is None else len(listing.others())),
        last_activity=max(one.last_activity for one in (own, *elsewhere)),
        started=min(one.started for one in (own, *elsewhere)),
        replicas=replicas_of(request.state.group, listing),
    )


def replicas_of(group: Group | None, listing: Listing) -> list[ReplicaModel]:
    """The replicas that the registry has, in the order in which they have joined."""
    if group is None:
        return []
    counts = listing.by_replica
    # One that was declared dead is not in the registry any more, and must tell so itself.
    ids = dict.fromkeys([*group.directory.addresses, group.id])
    return [
        ReplicaModel(
            id=one,
            asked=one == group.id,
            state=_state_of(one == group.id, group),
            kernels=counts[one],
        )
        for one in ids
    ]


def _state_of(is_asked: bool, group: Group) -> Literal["joined", "declared_dead", "unknown"]:
    if is_asked and group.problem() is not None:
        return "declared_dead"
    return "joined" if group.directory.is_fresh else "unknown"


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
    resolution = await manager.locating.resolve_path(path, kernel)
    return Response(msgspec.json.encode(resolution), media_type="application/json")
