"""The list of tokens: those of the caller's own, and for an administrator those of all."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Path, Query, Response
from msgspec import Meta
from pydantic import BaseModel, ConfigDict, Field

from ..managers.owners.callers_tokens import CallersTokens
from ..managers.owners.errors import (
    InvalidToken,
    ScopeNotGiven,
    TokenNameTaken,
    TokenNotFound,
    TokensUnavailable,
    TooManyTokens,
)
from ..managers.owners.token_table import BY_COMMAND, TokenRecord
from ..managers.telemetry.audit import AuditLog
from .access import requires
from .dependencies import AuditDep, SmallRoute, TokensDep
from .openapi import BODY, errors
from .schemas import schema_of

__all__ = ["note_token", "router"]

router = APIRouter(prefix="/api/tokens", tags=["tokens"], route_class=SmallRoute)

_encode = msgspec.json.Encoder().encode

DEFAULT_SECONDS: Final = 90 * 86400
MAX_SECONDS: Final = 10 * 365 * 86400

TokenIdDep = Annotated[str, Path(description="The token's id, which is its first 11 characters.")]


class TokenModel(msgspec.Struct):
    """A token in force, without what makes it one."""

    id: Annotated[
        str, Meta(description="The token's first 11 characters, by which logs name it, too.")
    ]
    name: str
    owner: Annotated[str, Meta(description="Whose kernels and sessions are its own.")]
    groups: list[str]
    scopes: Annotated[
        list[str], Meta(description="What it may do, as `resource:action`; `*` for all.")
    ]
    made_with: Annotated[
        str,
        Meta(
            description="The id of the token that it was made with, and is revoked with; or the "
            "name of what identified its maker, `uid:` and a user of the system for the command; "
            "or empty."
        ),
    ]
    created: datetime
    expires_at: datetime | None
    last_used: Annotated[datetime | None, Meta(description="Exact to a minute.")]


class CreatedToken(TokenModel):
    """A token that was just made: this is the only answer that has it."""

    token: str


class CreateToken(BaseModel):
    """What a token is to be."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"name": "ci", "scopes": ["kernels:execute"]}]},
    )

    name: str = Field(description="No other of the owner's tokens has it, in any case of letters.")
    scopes: list[str] = Field(
        max_length=100,
        description="As `resource:action`; `user` stands for all that users do with their own, "
        "which the files are not. No more than who makes it may do.",
    )
    owner: str | None = Field(None, description="Whose it is; by default the caller's.")
    groups: list[str] | None = Field(
        None, max_length=100, description="Of the owner; by default the caller's, if it is its own."
    )
    expires_in: float | None = Field(
        DEFAULT_SECONDS,
        ge=1,
        le=MAX_SECONDS,
        allow_inf_nan=False,
        description="Seconds that it lasts, but no longer than the token that it is made with; "
        "null: as long as that, or for ever.",
    )


def _fields(tokens: CallersTokens, record: TokenRecord) -> dict[str, Any]:
    return {
        **{name: getattr(record, name) for name in ("id", "name", "owner", "made_with")},
        "groups": [*record.groups],
        "scopes": [*record.scopes],
        "created": _time(record.created),
        "expires_at": _time(record.expires),
        "last_used": _time(tokens.last_used(record)),
    }


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _json(body: object, status: int = 200) -> Response:
    # No cache on the way may store a token.
    headers = {"Cache-Control": "no-store"}
    return Response(_encode(body), status, headers, media_type="application/json")


def note_token(audit: AuditLog, action: str, record: TokenRecord) -> None:
    """Note in the audit log that a token was made or revoked.

    If a user of the system has done that with the command, that one is the ``actor``.
    """
    by = record.revoked_by if action == "token_revoked" else record.made_with
    actor = {"actor": by} if by.startswith(BY_COMMAND) else {}
    named = {"token": record.id, "token_name": record.name, "token_owner": record.owner}
    audit.note(action, b"", **named, **actor)


@router.get(
    "",
    operation_id="tokens_list",
    response_model=schema_of(list[TokenModel]),
    responses=errors(),
    dependencies=[requires("tokens", "read")],
)
async def list_tokens(
    tokens: TokensDep,
    owner: Annotated[str | None, Query(description="Those of this owner only.")] = None,
) -> Response:
    """List the tokens in force: the caller's own, and for an administrator those of all."""
    return _json([TokenModel(**_fields(tokens, record)) for record in tokens.listed(owner)])


@router.post(
    "",
    operation_id="tokens_create",
    status_code=201,
    response_model=schema_of(CreatedToken),
    responses=errors(
        *BODY, InvalidToken, ScopeNotGiven, TokenNameTaken, TooManyTokens, TokensUnavailable
    ),
    dependencies=[requires("tokens", "write")],
)
async def create_token(tokens: TokensDep, audit: AuditDep, body: CreateToken) -> Response:
    """Make a token. The answer has it, and nobody can ask for it again.

    It may do no more than the token that it is made with, and ends with that one.
    """
    record, token = await tokens.create(
        body.name,
        body.scopes,
        owner=body.owner,
        groups=body.groups,
        seconds=body.expires_in,
    )
    note_token(audit, "token_created", record)
    return _json(CreatedToken(**_fields(tokens, record), token=token), 201)


@router.get(
    "/{token_id}",
    operation_id="tokens_get",
    response_model=schema_of(TokenModel),
    responses=errors(TokenNotFound),
    dependencies=[requires("tokens", "read")],
)
async def get_token(tokens: TokensDep, token_id: TokenIdDep) -> Response:
    """Look at a token in force. The answer does not have the token itself."""
    return _json(TokenModel(**_fields(tokens, tokens.get(token_id))))


@router.delete(
    "/{token_id}",
    operation_id="tokens_revoke",
    status_code=204,
    responses=errors(TokenNotFound, TokensUnavailable),
    dependencies=[requires("tokens", "write")],
)
async def revoke_token(tokens: TokensDep, audit: AuditDep, token_id: TokenIdDep) -> Response:
    """Revoke a token, and those that were made with it. What they have open is closed."""
    for record in await tokens.revoke(token_id):
        note_token(audit, "token_revoked", record)
    return Response(status_code=204)
