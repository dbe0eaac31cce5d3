"""The contents resource: files, notebooks and directories below the root directory."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from ..managers.errors import InvalidJSON, InvalidRequest
from ..managers.files.contents import Found, Precondition, Save
from ..managers.files.errors import (
    ContentsExist,
    ContentsForbidden,
    ContentsNotFound,
    ContentsTooLarge,
    ContentsUnavailable,
    InvalidContents,
    NoSpace,
    VersionMismatch,
)
from ..managers.files.models import CheckpointModel, ContentsModel
from ..managers.files.owned import CallersContents
from ..managers.files.service import ContentsService
from ..managers.files.tree import plain_path
from ..managers.files.uploads import LAST
from ..managers.limits.errors import BeyondLimit, ContentsLimit
from ..managers.limits.shares import CallersShare
from ..managers.telemetry.audit import AuditLog
from .access import requires
from .dependencies import AuditDep, of_state, read_body
from .openapi import BODY, errors
from .schemas import schema_of

__all__ = ["PathDep", "ReadableDep", "router"]

_PREFIX: Final = "/api/contents"


class _ContentsRoute(APIRoute):
    """A route that also matches the prefix without a slash behind it: the root directory."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and scope["path"].endswith(_PREFIX):
            scope = {**scope, "path": f"{scope['path']}/"}
        return super().matches(scope)


router = APIRouter(prefix=_PREFIX, tags=["contents"], route_class=_ContentsRoute)

T = TypeVar("T")

MAX_BODY_BYTES: Final = 64 * 2**20
"""The largest body that saves a file or notebook at once; larger files are sent in chunks."""

_READ: Final = (
    *(ContentsNotFound, ContentsForbidden, InvalidContents, InvalidRequest, ContentsUnavailable),
)
_WRITE: Final = (*_READ, ContentsExist, VersionMismatch, NoSpace, ContentsLimit, BeyondLimit)
_LOCATION: Final = {
    "headers": {"Location": {"schema": {"type": "string"}, "description": "Its URL path."}}
}

_PATHS: Final = frozenset({"path", "new_path", "copy_from"})
"""The fields of the audit log that name files."""

_encode = msgspec.json.Encoder().encode


OwnerDep = Annotated[
    str | None,
    Query(
        description="Whose files, if each owner has files (`files_by_owner`); one's own if left "
        "out. Those of others take a scope that reaches them, as `contents:admin` does."
    ),
]


async def _to_read(
    contents: Annotated[CallersContents, of_state("contents")], owner: OwnerDep = None
) -> ContentsService:
    return await contents.of("read", owner)


async def _to_write(
    contents: Annotated[CallersContents, of_state("contents")], owner: OwnerDep = None
) -> ContentsService:
    return await contents.of("write", owner)


ReadableDep = Annotated[ContentsService, Depends(_to_read)]
WritableDep = Annotated[ContentsService, Depends(_to_write)]
ShareDep = Annotated[CallersShare, of_state("share")]
PathDep = Annotated[str, Path(description="A path relative to the root directory.")]


async def _precondition(
    if_match: Annotated[
        str | None, Header(description="Only if the file has this `ETag` still.")
    ] = None,
    if_none_match: Annotated[
        str | None, Header(description="`*`: only if there is no such file yet.")
    ] = None,
) -> Precondition:
    versions = [tag.strip() for tag in (if_match or "").split(",") if tag.strip()]
    return Precondition(tuple(versions), absent=(if_none_match or "").strip() == "*")


PreconditionDep = Annotated[Precondition, Depends(_precondition)]


class _New(msgspec.Struct):
    """The body of a request to make or copy a file in a directory."""

    copy_from: str | None = None
    type: str | None = None
    ext: str | None = None


class _Renamed(msgspec.Struct):
    path: str


def _body_schema(**properties: dict[str, Any]) -> dict[str, Any]:
    """The body of an operation for the OpenAPI document; the route reads and decodes it itself."""
    schema = {"type": "object", "properties": properties}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}}}


_TYPE: Final = {"type": ["string", "null"], "examples": ["file", "notebook", "directory"]}
_TEXT: Final = {"type": ["string", "null"]}


# The routes of checkpoints come first, for the routes of files match their paths, too.


@router.get(
    "/{path:path}/checkpoints",
    operation_id="contents_checkpoints_list",
    response_model=schema_of(list[CheckpointModel]),
    responses=errors(*_READ),
    dependencies=[requires("contents", "read")],
)
async def list_checkpoints(service: ReadableDep, path: PathDep) -> Response:
    """List the checkpoints of a file: one at most."""
    return _json(_encode(await service.run(service.contents.checkpoints, path)))


@router.post(
    "/{path:path}/checkpoints",
    operation_id="contents_checkpoints_create",
    status_code=201,
    response_model=schema_of(CheckpointModel),
    responses={201: _LOCATION, **errors(*_WRITE)},
    dependencies=[requires("contents", "write")],
)
async def create_checkpoint(
    request: Request, service: WritableDep, audit: AuditDep, path: PathDep
) -> Response:
    """Keep a file as it is now, in the place of what was kept of it before."""
    with _action(audit, service, "checkpoint_created", path=path) as about:
        checkpoint = await service.run(service.contents.create_checkpoint, path)
        about["checkpoint_id"] = checkpoint.id
    location = f"{_url(request, path)}/checkpoints/{checkpoint.id}"
    return _json(_encode(checkpoint), 201, {"Location": location})


@router.post(
    "/{path:path}/checkpoints/{checkpoint_id}",
    operation_id="contents_checkpoints_restore",
    status_code=204,
    responses=errors(*_WRITE),
    dependencies=[requires("contents", "write")],
)
async def restore_checkpoint(
    service: WritableDep, audit: AuditDep, path: PathDep, checkpoint_id: str
) -> Response:
    """Make a file what it was when the checkpoint was made."""
    with _action(audit, service, "checkpoint_restored", path=path, checkpoint_id=checkpoint_id):
        await service.run(service.contents.restore_checkpoint, path, checkpoint_id)
    return Response(status_code=204)


@router.delete(
    "/{path:path}/checkpoints/{checkpoint_id}",
    operation_id="contents_checkpoints_delete",
    status_code=204,
    responses=errors(*_WRITE),
    dependencies=[requires("contents", "write")],
)
async def delete_checkpoint(
    service: WritableDep, audit: AuditDep, path: PathDep, checkpoint_id: str
) -> Response:
    """Remove a checkpoint."""
    with _action(audit, service, "checkpoint_deleted", path=path, checkpoint_id=checkpoint_id):
        await service.run(service.contents.delete_checkpoint, path, checkpoint_id)
    return Response(status_code=204)


@router.post(
    "/{path:path}/trust",
    operation_id="contents_trust",
    status_code=201,
    response_model=schema_of(ContentsModel),
    responses=errors(*_WRITE, ContentsTooLarge),
    dependencies=[requires("contents", "write")],
)
async def trust_notebook(service: WritableDep, audit: AuditDep, path: PathDep) -> Response:
    """Trust a notebook: browsers may run what its outputs hold."""
    with _action(audit, service, "notebook_trusted", path=path):
        found = await service.run(service.contents.trust, path)
    return _json(_encode(found.model), 201)


@router.get(
    "/{path:path}",
    operation_id="contents_get",
    response_model=schema_of(ContentsModel),
    responses=errors(*_READ, ContentsTooLarge),
    dependencies=[requires("contents", "read")],
)
async def get_contents(
    service: ReadableDep,
    path: PathDep,
    kind: Annotated[
        str | None, Query(alias="type", description="What it is taken for: 400 if it is not.")
    ] = None,
    form: Annotated[
        str | None,
        Query(alias="format", description="`text` or `base64`; whichever fits if left out."),
    ] = None,
    content: Annotated[str, Query(description="`0` for the model only.")] = "1",
    digest: Annotated[str, Query(alias="hash", description="`1` for a SHA-256, too.")] = "0",
) -> Response:
    """Look at a file, a notebook or a directory with what is in it."""
    if form not in (None, "text", "base64"):
        raise InvalidRequest("format: must be text or base64")
    for name, value in (("content", content), ("hash", digest)):
        if value not in ("0", "1"):
            raise InvalidRequest(f"{name}: must be 0 or 1")
    if kind not in (None, "directory", "notebook"):
        kind = "file"

    def get() -> tuple[bytes, Found]:
        found = service.contents.get(
            path, kind=kind, form=form, content=content == "1", hashed=digest == "1"
        )
        return _encode(found.model), found

    body, found = await service.run(get)
    # A file in a directory can change, and with it the listing, while the directory itself does
    # not. So a listing gets no tag here; `ETagMiddleware` makes one from the answer.
    is_directory = found.model.type == "directory"
    return _json(body, 200, {} if is_directory else _tag(found))


@router.post(
    "/{path:path}",
    operation_id="contents_create",
    status_code=201,
    response_model=schema_of(ContentsModel),
    responses={201: _LOCATION, **errors(*BODY, *_WRITE, ContentsTooLarge)},
    openapi_extra=_body_schema(copy_from=_TEXT, type=_TYPE, ext=_TEXT),
    dependencies=[requires("contents", "write")],
)
async def create_contents(
    request: Request, service: WritableDep, share: ShareDep, audit: AuditDep, path: PathDep
) -> Response:
    """Make something new in a directory: empty, or a copy. The server chooses its name."""
    new = await _decoded(request, service, share, _New) or _New()
    if new.copy_from:
        with _action(audit, service, "file_copied", path=path, copy_from=new.copy_from) as about:
            found = await service.run(service.contents.copy, new.copy_from, path)
            about["path"] = found.model.path
        await share.add_contents(found.model.size or 0)
    else:
        kind, suffix = new.type or None, new.ext or ""
        with _action(audit, service, "file_created", path=path) as about:
            found = await service.run(service.contents.create, path, kind=kind, suffix=suffix)
            about["path"] = found.model.path
    return _changed(request, found)


@router.put(
    "/{path:path}",
    operation_id="contents_save",
    response_model=schema_of(ContentsModel),
    responses={
        200: _LOCATION,
        201: {**_LOCATION, "description": "It is new.", "model": schema_of(ContentsModel)},
        **errors(*BODY, *_WRITE),
    },
    openapi_extra=_body_schema(
        type=_TYPE,
        format={**_TEXT, "examples": ["text", "base64", "json"]},
        content={"description": "A text, or the notebook."},
        chunk={"type": ["integer", "null"], "description": "Counted from 1; -1 is the last."},
    ),
    dependencies=[requires("contents", "write")],
)
async def save_contents(
    request: Request,
    service: WritableDep,
    share: ShareDep,
    audit: AuditDep,
    path: PathDep,
    precondition: PreconditionDep,
) -> Response:
    """Write a file or a notebook, or make a directory. Readers see the old content or the new."""
    save = await _decoded(request, service, share, Save)
    if save is None:
        with _action(audit, service, "file_created", path=path) as about:
            found = await service.run(service.contents.create, path)
            about["path"] = found.model.path
        return _changed(request, found)
    # Until its last chunk has come, an upload changes no file.
    whole = save.chunk in (None, LAST)
    with _action(audit, service, "file_saved", path=path) if whole else nullcontext():
        found = await service.run(service.contents.save, path, save, precondition)
    return _changed(request, found)


@router.patch(
    "/{path:path}",
    operation_id="contents_rename",
    response_model=schema_of(ContentsModel),
    responses={200: _LOCATION, **errors(*BODY, *_WRITE)},
    openapi_extra=_body_schema(path={"type": "string"}),
    dependencies=[requires("contents", "write")],
)
async def rename_contents(
    request: Request,
    service: WritableDep,
    share: ShareDep,
    audit: AuditDep,
    path: PathDep,
    precondition: PreconditionDep,
) -> Response:
    """Give a file or directory another path."""
    renamed = await _decoded(request, service, share, _Renamed)
    if renamed is None:
        raise InvalidRequest("JSON body missing")
    with _action(audit, service, "file_renamed", path=path, new_path=renamed.path):
        found = await service.run(service.contents.rename, path, renamed.path, precondition)
    return _changed(request, found)


@router.delete(
    "/{path:path}",
    operation_id="contents_delete",
    status_code=204,
    responses=errors(*_WRITE),
    dependencies=[requires("contents", "write")],
)
async def delete_contents(
    service: WritableDep, audit: AuditDep, path: PathDep, precondition: PreconditionDep
) -> Response:
    """Remove a file, or a directory with all that is in it."""
    with _action(audit, service, "file_deleted", path=path):
        await service.run(service.contents.delete, path, precondition)
    return Response(status_code=204)


def _action(
    audit: AuditLog, service: ContentsService, action: str, **data: str
) -> AbstractContextManager[dict[str, Any]]:
    """As `AuditLog.action`, with whose files these are; each path has its plain form."""
    for name in _PATHS & data.keys():
        data[name] = plain_path(data[name])
    return audit.action(action, **data, **service.whose)


async def _decoded(
    request: Request, service: ContentsService, share: CallersShare, kind: type[T]
) -> T | None:
    """The body, decoded in a thread: a notebook may have megabytes. None for an empty one.

    It counts against the caller's share before anything is done with it.
    """
    body = await read_body(request, MAX_BODY_BYTES)
    await share.take_contents(len(body))
    return await service.run(_decode, body, kind) if body.strip() else None


def _decode(body: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:  # its text names the field, and not the value
        raise InvalidRequest(f"body: {error}") from None
    except (msgspec.DecodeError, RecursionError):
        raise InvalidJSON("Invalid JSON in body of request") from None


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, "application/json")


def _changed(request: Request, found: Found) -> Response:
    headers = {"Location": _url(request, found.model.path), **_tag(found)}
    return _json(_encode(found.model), 201 if found.created else 200, headers)


def _tag(found: Found) -> dict[str, str]:
    return {} if found.version is None else {"ETag": found.version}


def _url(request: Request, path: str) -> str:
    return f"{request.scope.get('root_path', '')}/api/contents/{quote(path.strip('/'))}"
