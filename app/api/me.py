"""The user: who it is, what it may do, and how it wants to be called."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Query, Request, Response
from msgspec import UNSET, Meta, UnsetType

from ..managers.errors import FieldNotUpdatable, InvalidRequest
from ..managers.owners.principal import ANONYMOUS
from .access import AUTHENTICATED, requires
from .dependencies import AuthorizationDep, SmallRoute, UserDep
from .identity import UPDATABLE_FIELDS, Identity
from .openapi import BODY, errors
from .parts import others_of
from .requests import UpdateMe
from .schemas import schema_of

router = APIRouter(prefix="/api/me", tags=["user"], route_class=SmallRoute)


class MeModel(msgspec.Struct):
    """The user, and what it may do."""

    identity: Identity
    permissions: Annotated[
        dict[str, list[str]],
        Meta(
            description="Of what was asked for, the actions that are allowed; and "
            "`updatable_fields`, what of the identity can be changed."
        ),
    ]
    groups: Annotated[
        list[str] | UnsetType,
        Meta(description="The user's groups. Absent for the server's own token, as `scopes` is."),
    ] = UNSET
    scopes: Annotated[
        list[str] | UnsetType, Meta(description="What the token that was shown may be used for.")
    ] = UNSET


class UpdatedMe(msgspec.Struct):
    """The user, changed."""

    status: Annotated[str, Meta(examples=["success"])]
    identity: Identity


_encode = msgspec.json.Encoder().encode
_permissions = msgspec.json.Decoder(dict[str, list[str]])


@router.get(
    "",
    operation_id="user_get",
    response_model=schema_of(MeModel),
    responses=errors(InvalidRequest),
    dependencies=[AUTHENTICATED],
)
async def get_me(
    user: UserDep,
    authorization: AuthorizationDep,
    permissions: Annotated[
        str, Query(description='What to ask for, as JSON: `{"kernels": ["read", "write"]}`.')
    ] = "",
) -> Response:
    """Who the user is, and which of the `permissions` asked for it has."""
    allowed = {
        resource: [action for action in actions if await authorization.allows(action, resource)]
        for resource, actions in _decode(permissions).items()
    }
    allowed["updatable_fields"] = list(UPDATABLE_FIELDS)
    me, principal = MeModel(user.identity, allowed), user.principal
    if principal.owner != ANONYMOUS or not principal.scopes.everything:
        me.groups, me.scopes = sorted(principal.groups), [*principal.scopes]
    return Response(_encode(me), media_type="application/json")


def _decode(permissions: str) -> dict[str, list[str]]:
    try:
        return _permissions.decode(permissions) if permissions else {}
    except msgspec.MsgspecError:
        raise InvalidRequest(
            'permissions should be a JSON dict of {"resource": ["action",]}'
        ) from None


@router.patch(
    "",
    operation_id="user_update",
    response_model=schema_of(UpdatedMe),
    responses=errors(*BODY, FieldNotUpdatable),
    # The authorizer may decide by the identity, above all about kernels. So a user who may not
    # change kernels may not change the identity either.
    dependencies=[requires("api", "write", also=[("kernels", "write")])],
)
async def update_me(request: Request, user: UserDep, body: UpdateMe) -> Response:
    """Change how the user is called. It lasts as long as the server runs."""
    changes = body.model_dump(exclude_unset=True)
    user.update(changes)
    if (others := others_of(request)) is not None:
        await others.ask(request, bytes, _encode(changes))
    answer = UpdatedMe("success", user.identity)
    return Response(_encode(answer), media_type="application/json")
