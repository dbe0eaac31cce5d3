"""The sessions resource: which document or console works with which kernel."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response

from ..managers.errors import (
    InvalidKernelId,
    InvalidPath,
    IsolationUnavailable,
    KernelNotRunning,
    KernelNotStopped,
    KernelSpecInvalid,
    KernelStartFailed,
    KernelUnavailable,
    KernelUnreachable,
    MissingField,
    NoSuchKernel,
    ServerStopping,
    SessionNotFound,
    TooManyKernels,
    TooManySessions,
    TooManyStarts,
)
from ..managers.limits.errors import BeyondLimit, KernelsLimit, StartsLimit
from ..managers.processes.engines.caller_options import EngineOptionRefused
from ..managers.processes.launch_errors import TooManyOpenFiles
from ..managers.sessions.sessions import SessionModel
from ..managers.sessions.store import Session
from .access import requires
from .dependencies import AuditDep, AuthorizationDep, JSONRoute, SessionsDep
from .openapi import BODY, ERRORS, errors, links
from .requests import StartSession, UpdateSession
from .schemas import schema_of
from .traces import TraceDep

router = APIRouter(prefix="/api/sessions", tags=["sessions"], route_class=JSONRoute)

SessionIdDep = Annotated[str, Path(description="The session's id.")]


def _json(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(body, status, headers, "application/json")


def _about(session: Session) -> dict[str, str]:
    """A session in the fields of the audit log."""
    return {
        "session_id": session.id,
        "path": session.path,
        "kernel_id": session.kernel_id,
        "owner": session.owner,
    }


@router.get(
    "",
    operation_id="sessions_list",
    response_model=schema_of(list[SessionModel]),
    responses=ERRORS,
    dependencies=[requires("sessions", "read")],
)
async def list_sessions(
    sessions: SessionsDep,
    owner: Annotated[str | None, Query(description="Only the sessions of this owner.")] = None,
) -> Response:
    """List the sessions. One whose kernel is gone is forgotten and left out.

    An administrator's list has everybody's.
    """
    return _json(await sessions.models(owner))


@router.post(
    "",
    operation_id="sessions_create",
    status_code=201,
    response_model=schema_of(SessionModel),
    responses={
        201: {
            "headers": {"Location": {"schema": {"type": "string"}, "description": "Its URL path."}},
            "links": links(
                {"session_id": "$response.body#/id"},
                *("sessions_get", "sessions_update", "sessions_delete"),
            ),
        },
        **errors(
            *BODY,
            MissingField,
            InvalidPath,
            EngineOptionRefused,
            InvalidKernelId,
            KernelNotRunning,
            TooManyKernels,
            TooManySessions,
            TooManyStarts,
            KernelsLimit,
            StartsLimit,
            BeyondLimit,
            KernelStartFailed,
            TooManyOpenFiles,
            IsolationUnavailable,
            KernelSpecInvalid,
            KernelUnavailable,
            KernelUnreachable,
            ServerStopping,
        ),
    },
    dependencies=[requires("sessions", "write", also=[("kernels", "write")])],
)
async def create_session(
    request: Request, sessions: SessionsDep, audit: AuditDep, trace: TraceDep, body: StartSession
) -> Response:
    """Make a session and start its kernel, or attach it to a kernel that runs.

    If there is a session for this path, that one is returned as it is, with 201 too.
    """

    def made(session: Session) -> None:
        audit.note("session_created", b"", **_about(session))

    session = await sessions.create(
        body.path,
        body.type,
        name=body.name,
        kernel_id=body.kernel.id or None,
        kernel_name=body.kernel.name or None,
        env=trace,
        given=body.kernel.engine_options,
        made=made,
    )
    location = f"{request.scope.get('root_path', '')}/api/sessions/{session.id}"
    return _json(sessions.model(session), 201, {"Location": location})


@router.get(
    "/{session_id}",
    operation_id="sessions_get",
    response_model=schema_of(SessionModel),
    responses=errors(SessionNotFound, KernelUnreachable),
    dependencies=[requires("sessions", "read")],
)
async def get_session(sessions: SessionsDep, session_id: SessionIdDep) -> Response:
    """Look at one session."""
    return _json(sessions.model(await sessions.get(session_id)))


@router.patch(
    "/{session_id}",
    operation_id="sessions_update",
    response_model=schema_of(SessionModel),
    responses=errors(
        *BODY,
        InvalidPath,
        EngineOptionRefused,
        NoSuchKernel,
        SessionNotFound,
        TooManyKernels,
        TooManySessions,
        TooManyStarts,
        KernelsLimit,
        StartsLimit,
        BeyondLimit,
        KernelUnavailable,
        KernelUnreachable,
        KernelNotStopped,
        ServerStopping,
    ),
    dependencies=[requires("sessions", "write")],
)
async def update_session(
    sessions: SessionsDep,
    audit: AuditDep,
    authorization: AuthorizationDep,
    session_id: SessionIdDep,
    trace: TraceDep,
    body: UpdateSession,
) -> Response:
    """Rename a session, change its type, or give it another kernel.

    Its old kernel is shut down; the answer comes when that is done. To give it another kernel
    takes `write` on `kernels` too.
    """
    if body.kernel.id is not None or body.kernel.name is not None:
        await authorization.require("write", "kernels")
    with audit.action("session_changed", session_id=session_id) as about:
        session = await sessions.update(
            session_id,
            body.changes,
            kernel_id=body.kernel.id,
            kernel_name=body.kernel.name,
            env=trace,
            given=body.kernel.engine_options,
        )
        about |= _about(session)
    return _json(sessions.model(session))


@router.delete(
    "/{session_id}",
    operation_id="sessions_delete",
    status_code=204,
    responses=errors(SessionNotFound, KernelUnreachable, KernelNotStopped),
    dependencies=[requires("sessions", "write", also=[("kernels", "write")])],
)
async def delete_session(
    sessions: SessionsDep, audit: AuditDep, session_id: SessionIdDep
) -> Response:
    """End a session and shut its kernel down, even if other sessions have it too."""
    with audit.action("session_deleted", session_id=session_id) as about:
        about |= _about(await sessions.delete(session_id))
    return Response(status_code=204)
