"""The owners resource: what each may use, and uses."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Response
from starlette.requests import HTTPConnection

from ..managers.kernels.owners import CallersOwners, OwnerModel
from ..managers.limits.errors import OwnerNotFound
from .access import requires
from .openapi import ERRORS, errors
from .schemas import schema_of

router = APIRouter(prefix="/api/owners", tags=["owners"])

_encode = msgspec.json.Encoder().encode


async def _owners(connection: HTTPConnection) -> CallersOwners:
    owners: CallersOwners = connection.state.owners
    return owners


OwnersDep = Annotated[CallersOwners, Depends(_owners)]


@router.get(
    "",
    operation_id="owners_list",
    response_model=schema_of(list[OwnerModel]),
    responses=ERRORS,
    dependencies=[requires("api", "read", activity=False)],
)
async def list_owners(owners: OwnersDep) -> Response:
    """List the owners of whom the server knows something, with their limits and usage.

    That is the caller alone; an administrator's list has everybody. Asking is not activity.
    """
    return Response(_encode(owners.listed()), media_type="application/json")


@router.get(
    "/{name}",
    operation_id="owners_get",
    response_model=schema_of(OwnerModel),
    responses=errors(OwnerNotFound),
    dependencies=[requires("api", "read", activity=False)],
)
async def get_owner(
    owners: OwnersDep, name: Annotated[str, Path(description="The owner's name.")]
) -> Response:
    """Look at what an owner may use, and uses: at oneself, or as an administrator. Asking is not
    activity.
    """
    return Response(_encode(owners.get(name)), media_type="application/json")
