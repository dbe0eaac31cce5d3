"""The owners resource: what each may use, and uses."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Path, Request, Response

from ..managers.kernels.owners import CallersOwners, OwnerModel, together
from ..managers.limits.errors import OwnerNotFound
from .access import requires
from .dependencies import of_state
from .openapi import ERRORS, errors
from .parts import others_of
from .schemas import schema_of

router = APIRouter(prefix="/api/owners", tags=["owners"])

_encode = msgspec.json.Encoder().encode
_models = msgspec.json.Decoder(list[OwnerModel]).decode
_model = msgspec.json.Decoder(OwnerModel).decode


OwnersDep = Annotated[CallersOwners, of_state("owners")]


@router.get(
    "",
    operation_id="owners_list",
    response_model=schema_of(list[OwnerModel]),
    responses=ERRORS,
    dependencies=[requires("owners", "read", activity=False)],
)
async def list_owners(request: Request, owners: OwnersDep) -> Response:
    """List the owners of whom the server knows something, with their limits and usage.

    That is the caller alone; an administrator's list has everybody. Asking is not activity.
    """
    others = others_of(request)
    answers = {} if others is None else await others.ask(request, _models)
    models = [*owners.listed(), *(one for answer in answers.values() for one in answer)]
    return Response(_encode(together(models)), media_type="application/json")


@router.get(
    "/{name}",
    operation_id="owners_get",
    response_model=schema_of(OwnerModel),
    responses=errors(OwnerNotFound),
    dependencies=[requires("owners", "read", activity=False)],
)
async def get_owner(
    request: Request,
    owners: OwnersDep,
    name: Annotated[str, Path(description="The owner's name.")],
) -> Response:
    """Look at what an owner may use, and uses: at oneself, or as an administrator. Asking is not
    activity.
    """
    found, others = owners.get(name), others_of(request)
    answers = {} if others is None else await others.ask(request, _model)
    (owner,) = together([found, *answers.values()])
    return Response(_encode(owner), media_type="application/json")
