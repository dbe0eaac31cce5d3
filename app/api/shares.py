"""The shares of a kernel: with whom its owner shares it."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..managers.errors import (
    InvalidShare,
    KernelNotFound,
    ShareNotFound,
    TooManyShares,
)
from ..managers.kernels.callers import CallersKernels
from ..managers.owners.ownership import Grantee, Share
from .access import requires
from .dependencies import AuditDep, KernelIdDep, ManagerDep, SmallRoute
from .openapi import BODY, errors

router = APIRouter(
    prefix="/api/kernels/{kernel_id}/shares", tags=["kernels"], route_class=SmallRoute
)

_encode = msgspec.json.Encoder().encode


class ShareModel(BaseModel):
    """A share of a kernel: with an owner, by `name`, or with the members of a `group`."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "ben", "access": "read"}]})

    name: str | None = Field(None, description="The owner with whom it is shared.")
    group: str | None = Field(None, description="The group with whose members it is shared.")
    access: Literal["read", "execute"] = Field(
        description="`read`: to look at the kernel and all that it says. `execute`: to run code in "
        "it, too, and so to do whatever its process can."
    )

    @model_validator(mode="after")
    def _one_grantee(self) -> ShareModel:
        if (self.name is None) == (self.group is None):
            raise ValueError("either name or group")
        return self


def _shown(share: Share) -> dict[str, str]:
    return {share.kind: share.name, "access": share.access}


def _about(manager: CallersKernels, kernel_id: str, grantee: Grantee) -> dict[str, str]:
    """A kernel and with whom it is shared, in the fields of the audit log.

    Raises `KernelNotFound`.
    """
    kernel = manager.get(kernel_id)
    kind, name = grantee
    about = {"kernel_id": kernel.id, "kernel_name": kernel.name, "owner": kernel.ownership.owner}
    return {**about, f"with_{kind}": name}


@router.get(
    "",
    operation_id="shares_list",
    response_model=list[ShareModel],
    responses=errors(KernelNotFound),
    dependencies=[requires("kernels", "read")],
)
async def list_shares(manager: ManagerDep, kernel_id: KernelIdDep) -> Response:
    """List the shares of a kernel. They are shown to its owner, and to an administrator."""
    body = _encode([_shown(share) for share in manager.sharing.shares(kernel_id)])
    return Response(body, media_type="application/json")


@router.post(
    "",
    operation_id="shares_create",
    status_code=201,
    response_model=ShareModel,
    responses=errors(*BODY, KernelNotFound, InvalidShare, TooManyShares),
    dependencies=[requires("kernels", "write")],
)
async def create_share(
    manager: ManagerDep, audit: AuditDep, kernel_id: KernelIdDep, body: ShareModel
) -> Response:
    """Share a kernel with an owner or a group, until the kernel is shut down or the share ends.

    A share that the same owner or group has already is replaced.
    """
    kind: Literal["name", "group"] = "name" if body.name is not None else "group"
    asked = Share(kind, body.name or body.group or "", body.access)
    named = {**_about(manager, kernel_id, asked.grantee), "access": asked.access}
    with audit.action("share_created", **named) as about:
        share = await manager.sharing.share(kernel_id, asked)
        about[f"with_{kind}"] = share.name
    return Response(_encode(_shown(share)), 201, media_type="application/json")


@router.delete(
    "",
    operation_id="shares_delete",
    status_code=204,
    responses=errors(InvalidShare, KernelNotFound, ShareNotFound),
    dependencies=[requires("kernels", "write")],
)
async def delete_share(
    manager: ManagerDep,
    audit: AuditDep,
    kernel_id: KernelIdDep,
    name: Annotated[str | None, Query(description="The owner whose share ends.")] = None,
    group: Annotated[str | None, Query(description="The group whose share ends.")] = None,
) -> Response:
    """End a share. Connections that are open by it alone are closed."""
    if (name is None) == (group is None):
        raise InvalidShare("either name or group")
    grantee: Grantee = ("name", name) if name is not None else ("group", group or "")
    with audit.action("share_ended", **_about(manager, kernel_id, grantee)) as about:
        share = await manager.sharing.revoke(kernel_id, grantee)
        about[f"with_{share.kind}"] = share.name
    return Response(status_code=204)
