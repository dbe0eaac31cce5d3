"""The kernels resource: list, start, look at, interrupt, restart, shut down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Body, Query, Request, Response

from ..callers import caller
from ..managers.errors import (
    MAX_NAME,
    EnvironmentNotAllowed,
    IdempotencyConflict,
    InvalidEnvironment,
    InvalidIdempotencyKey,
    InvalidKernelId,
    InvalidPath,
    IsolationUnavailable,
    KernelNotFound,
    KernelNotRunning,
    KernelNotStopped,
    KernelSpecInvalid,
    KernelSpecNotFound,
    KernelStartFailed,
    KernelUnreachable,
    RequestTooLarge,
    ServerStopping,
    TooManyKernels,
    TooManyStarts,
)
from ..managers.kernels.model import KernelModel
from ..managers.limits.errors import BeyondLimit, KernelsLimit, StartsLimit
from ..managers.processes.engines.caller_options import EngineOptionRefused
from ..managers.processes.environment import is_code, needs_execute
from ..managers.processes.hosts.errors import NO_KEEPER
from ..managers.processes.launch_errors import TooManyOpenFiles
from ..settings import Settings
from .access import requires
from .authorization import Authorization
from .dependencies import (
    AuthorizationDep,
    IdempotencyDep,
    IdempotencyKeyDep,
    JSONRoute,
    KernelIdDep,
    ManagerDep,
    PolledRoute,
    fingerprint,
)
from .idempotency import KERNELS, Making
from .openapi import BODY, ERRORS, errors, links
from .requests import StartKernel
from .schemas import schema_of
from .traces import TraceDep

router = APIRouter(prefix="/api/kernels", tags=["kernels"], route_class=JSONRoute)


class _Encoded(Response):
    """JSON that is encoded already; its two headers take no longer than they must."""

    media_type = "application/json"

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        if headers:
            super().init_headers(headers)
            return
        length = str(len(self.body)).encode()
        self.raw_headers = [(b"content-length", length), (b"content-type", b"application/json")]


async def list_kernels(
    manager: ManagerDep,
    owner: Annotated[str | None, Query(description="Only the kernels of this owner.")] = None,
) -> Response:
    """List the kernels that are the caller's, or shared with it, in the order of their starts.

    An administrator's list has everybody's.
    """
    listing = manager.listing
    await listing.refresh()
    return _Encoded(listing.models if owner is None else listing.models_of(owner))


router.add_api_route(
    "",
    list_kernels,
    methods=["GET"],
    operation_id="kernels_list",
    response_model=schema_of(list[KernelModel]),
    responses=ERRORS,
    dependencies=[requires("kernels", "read")],
    route_class_override=PolledRoute,
)


@router.post(
    "",
    operation_id="kernels_start",
    status_code=201,
    response_model=schema_of(KernelModel),
    responses={
        201: {
            "headers": {"Location": {"schema": {"type": "string"}, "description": "Its URL path."}},
            "links": links(
                {"kernel_id": "$response.body#/id"},
                *("kernels_get", "kernels_interrupt", "kernels_restart", "kernels_shut_down"),
                *("executions_run", "executions_list", "messages_list"),
            ),
        },
        **errors(
            *BODY,
            InvalidKernelId,
            InvalidPath,
            InvalidEnvironment,
            EnvironmentNotAllowed,
            EngineOptionRefused,
            InvalidIdempotencyKey,
            KernelSpecNotFound,
            KernelNotFound,
            IdempotencyConflict,
            KernelNotRunning,
            TooManyKernels,
            TooManyStarts,
            KernelsLimit,
            StartsLimit,
            BeyondLimit,
            KernelStartFailed,
            TooManyOpenFiles,
            IsolationUnavailable,
            KernelSpecInvalid,
            ServerStopping,
        ),
    },
    dependencies=[requires("kernels", "write")],
)
async def start_kernel(
    request: Request,
    manager: ManagerDep,
    authorization: AuthorizationDep,
    trace: TraceDep,
    idempotency: IdempotencyDep,
    body: Annotated[StartKernel | None, Body()] = None,
    idempotency_key: IdempotencyKeyDep = None,
) -> Response:
    """Start a kernel. It becomes ready by itself; requests to it wait until then."""
    asked, driving = body or StartKernel(), manager.driving
    await _check_env(asked.env or {}, manager.settings, authorization)

    async def make(new_id: str) -> str:
        if asked.connection_file is not None:
            found = await driving.adopt_file(asked.connection_file, owned=bool(asked.owned))
            return found.id
        started = await driving.start(
            asked.name,
            path=asked.path,
            env={**trace, **(asked.env or {})},
            kernel_id=asked.kernel_id,
            new_id=new_id,
            given=asked.engine_options,
        )
        return started.id

    def find(new_id: str) -> str | None:
        chosen = asked.kernel_id
        return manager.known_id(new_id if chosen is None else manager.chosen(chosen))

    how = Making(make, find)
    kernel_id = await idempotency.once(KERNELS, idempotency_key, fingerprint(asked), how)
    model = manager.model_of(kernel_id)  # another replica may have made it, for the same key
    if (made_for := caller()) is not None:
        made_for.kernel_id = kernel_id
    location = f"{request.scope.get('root_path', '')}/api/kernels/{quote(kernel_id)}"
    return _Encoded(model, 201, {"Location": location})


async def _check_env(
    env: Mapping[str, str], settings: Settings, authorization: Authorization
) -> None:
    """Raise `EnvironmentNotAllowed` for a variable that this client may not set."""
    code = next(filter(is_code, env), None)
    if code is not None and not settings.client_env_code:
        raise EnvironmentNotAllowed(f"env: {code[:MAX_NAME]} has code run: this server takes none")
    name = needs_execute(env, settings.client_env_allow)
    if name is not None and not await authorization.allows("execute", "kernels"):
        raise EnvironmentNotAllowed(
            f"env: to set {name[:MAX_NAME]} takes the permission to execute code in kernels"
        )


async def get_kernel(manager: ManagerDep, kernel_id: KernelIdDep) -> Response:
    """Look at one kernel."""
    return _Encoded(manager.get(kernel_id).model)


router.add_api_route(
    "/{kernel_id}",
    get_kernel,
    methods=["GET"],
    operation_id="kernels_get",
    response_model=schema_of(KernelModel),
    responses=errors(KernelNotFound),
    dependencies=[requires("kernels", "read")],
    route_class_override=PolledRoute,
)


@router.delete(
    "/{kernel_id}",
    operation_id="kernels_shut_down",
    status_code=204,
    responses=errors(KernelNotFound, KernelNotStopped, *NO_KEEPER),
    dependencies=[requires("kernels", "write")],
)
async def shut_down_kernel(
    manager: ManagerDep,
    kernel_id: KernelIdDep,
    give_up: Annotated[
        bool, Query(description="Forget a kernel whose host is away, and end it when that is back.")
    ] = False,
) -> Response:
    """Shut a kernel down. The answer comes when its process is gone, or could not be ended."""
    await manager.driving.shut_down(kernel_id, give_up=give_up)
    return Response(status_code=204)


@router.post(
    "/{kernel_id}/interrupt",
    operation_id="kernels_interrupt",
    status_code=204,
    responses=errors(
        KernelNotFound,
        KernelNotRunning,
        RequestTooLarge,
        KernelUnreachable,
        *NO_KEEPER,
    ),
    dependencies=[requires("kernels", "write")],
)
async def interrupt_kernel(manager: ManagerDep, kernel_id: KernelIdDep) -> Response:
    """Interrupt what a kernel runs. One that is not ready yet runs nothing."""
    await manager.driving.interrupt(kernel_id)
    return Response(status_code=204)


@router.post(
    "/{kernel_id}/restart",
    operation_id="kernels_restart",
    response_model=schema_of(KernelModel),
    responses=errors(
        KernelNotFound,
        KernelNotRunning,
        RequestTooLarge,
        TooManyKernels,
        TooManyStarts,
        KernelsLimit,
        StartsLimit,
        BeyondLimit,
        KernelStartFailed,
        TooManyOpenFiles,
        IsolationUnavailable,
        KernelSpecInvalid,
        KernelNotStopped,
        ServerStopping,
    ),
    dependencies=[requires("kernels", "write")],
)
async def restart_kernel(manager: ManagerDep, kernel_id: KernelIdDep) -> Response:
    """Give a kernel a new process under the same id. The answer comes when it is launched.

    The old process goes on if the new one is known not to start.
    """
    kernel = await manager.driving.restart(kernel_id)
    return _Encoded(kernel.model)
