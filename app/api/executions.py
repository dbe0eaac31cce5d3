"""The executions of a kernel: running code and fetching its output without a WebSocket."""

from __future__ import annotations

import mimetypes
import time
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Annotated, Any, Final
from urllib.parse import quote

import msgspec
from fastapi import APIRouter, Body, Depends, Path, Query, Request, Response
from starlette.responses import StreamingResponse

from ..callers import caller
from ..managers.errors import (
    AfterBeyondEnd,
    ExecutionNotFound,
    GenerationMismatch,
    IdempotencyConflict,
    InvalidIdempotencyKey,
    InvalidRequest,
    KernelkeepError,
    KernelNotFound,
    KernelNotRunning,
    KernelUnreachable,
    MessageTypeNotAllowed,
    NoInputRequested,
    OutputNotFound,
    PromptGone,
    ServerStopping,
    TimeoutTooLong,
    TooManyExecutions,
    WaitTooLong,
)
from ..managers.executions.code import Code
from ..managers.executions.events import ExecutionEvent, follow
from ..managers.executions.execution import Execution
from ..managers.executions.results import (
    ExecutionModel,
    ExecutionResultModel,
    OutputURL,
    info,
    output,
    result,
)
from ..managers.kernels.finding import Permission
from ..managers.kernels.kernel import Kernel
from ..managers.kernels.sharing import no_longer_shared
from ..managers.limits.errors import ExecutionsLimit
from .access import requires
from .awaiting import AwaitedResponse
from .dependencies import (
    CodeRoute,
    IdempotencyDep,
    IdempotencyKeyDep,
    IfGenerationDep,
    KernelDep,
    ManagerDep,
    PermissionDep,
    fingerprint,
)
from .idempotency import KEY_SECONDS, Making
from .openapi import BODY, FILE, errors, links, stream_of
from .requests import CancelExecution, InputModel, RunCode
from .schemas import schema_of, union_of
from .streams import (
    NDJSON,
    SSE,
    AfterDep,
    EventStream,
    JSONLines,
    LastEventIdDep,
    resume_after,
    wants,
    while_permitted,
)

router = APIRouter(
    prefix="/api/kernels/{kernel_id}/executions", tags=["executions"], route_class=CodeRoute
)

DEFAULT_MAX_BYTES: Final = 10 * 2**20
MAX_BYTES: Final = 64 * 2**20
"""The most output that one response may hold, whatever ``max_bytes`` asks for."""

_NOT_FOUND: Final = (KernelNotFound, ExecutionNotFound)

# A kernel's output is never trusted: a browser must not run it as a page of this server.
INERT: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "sandbox",
}

_LINKS: Final = links(
    {"kernel_id": "$request.path.kernel_id", "execution_id": "$response.body#/id"},
    *("executions_get", "executions_follow", "executions_get_output"),
    *("executions_answer", "executions_cancel"),
)

_encode = msgspec.json.Encoder().encode

ExecutionEventModel = union_of(
    ExecutionEvent,
    "ExecutionEventModel",
    "Something that happens to an execution. In a stream, one event a line or a `data` field.",
    example={"type": "stream", "seq": 9, "name": "stdout", "text": "working\n"},
)

ExecutionIdDep = Annotated[str, Path(description="The execution's id.")]


async def _execution(kernel: KernelDep, execution_id: ExecutionIdDep) -> Execution:
    return kernel.executions.get(execution_id)


ExecutionDep = Annotated[Execution, Depends(_execution)]

WaitDep = Annotated[
    float,
    Query(
        ge=0,
        allow_inf_nan=False,
        description="Seconds that this request may wait for the end of the execution.",
    ),
]
MaxBytesDep = Annotated[
    int,
    Query(
        ge=0,
        le=MAX_BYTES,
        description="How much output to return. Of more, the head and the tail stay, and the name "
        "of an error with the end of its traceback; a text result is shortened, and other data is "
        "replaced by the URL where it is.",
    ),
]


def _path(request: Request, kernel: Kernel, execution: Execution) -> str:
    root = request.scope.get("root_path", "")
    return f"{root}/api/kernels/{quote(kernel.id)}/executions/{quote(execution.id, safe='')}"


def _url_of_outputs(request: Request, kernel: Kernel, execution: Execution) -> OutputURL:
    path = _path(request, kernel, execution)
    return lambda number, mime: f"{path}/outputs/{number}?mime={quote(mime, safe='')}"


async def _answer(
    request: Request,
    kernel: Kernel,
    execution: Execution,
    max_bytes: int,
    *,
    created: bool = False,
    waited: bool = False,
) -> Response:
    """The response with an execution as it is now.

    Its status is 202 for an execution that this request has ``created``, unless the request has
    ``waited`` until the execution ended; otherwise it is 200.
    """
    url = _url_of_outputs(request, kernel, execution)
    body = _encode(await result(kernel.traffic.log, execution, url, max_bytes))
    headers = {"Location": _path(request, kernel, execution)} if created else {}
    status = 202 if created and not (waited and execution.ended) else 200
    return Response(body, status, headers, "application/json")


def _waiting(
    kernel: Kernel,
    execution: Execution,
    seconds: float,
    answer: Callable[[], Any],
    permission: Permission,
    *,
    cancel_on_disconnect: bool = False,
) -> Response:
    async def make() -> Response:
        began = time.perf_counter()
        attended = kernel.executions.attended(execution) if cancel_on_disconnect else nullcontext()
        with attended:
            await kernel.executions.ended(execution, seconds, permission)
        if (made_for := caller()) is not None:
            made_for.waited = time.perf_counter() - began
        # The permission is looked at even if the execution has ended: the share may have ended in
        # the same turn of the loop.
        if not permission():  # the kernel was shared with the caller until now
            raise no_longer_shared(kernel)
        response: Response = await answer()
        return response

    # Called when `make` has ended: its client is no longer among those that wait (`attended`). The
    # execution goes on if another request waits for it, with the same idempotency key.
    async def cancel() -> None:
        if kernel.executions.is_deserted(execution):
            kernel.reports.cancelled(execution.id)
            with suppress(KernelkeepError):  # the client that would get the error has gone
                why = "Its client has gone: it was cancelled"
                await kernel.executions.cancel(execution, why=why)

    return AwaitedResponse(make, cancel if cancel_on_disconnect else None)


async def _check_wait(manager: ManagerDep, wait: WaitDep = 0.0) -> float:
    limit = manager.settings.execution_wait_limit
    if wait > limit:
        raise WaitTooLong(f"wait: must be at most {limit:g} s")
    return wait


CheckedWaitDep = Annotated[float, Depends(_check_wait)]


@router.post(
    "",
    operation_id="executions_run",
    status_code=202,
    response_model=schema_of(ExecutionResultModel),
    responses={
        200: {
            "model": schema_of(ExecutionResultModel),
            "description": "It has ended within `wait` seconds.",
            "links": _LINKS,
        },
        202: {
            "description": "It is under way; the output so far.",
            "headers": {"Location": {"schema": {"type": "string"}, "description": "Its URL path."}},
            "links": _LINKS,
        },
        **errors(
            *BODY,
            WaitTooLong,
            TimeoutTooLong,
            InvalidIdempotencyKey,
            MessageTypeNotAllowed,
            *_NOT_FOUND,
            KernelNotRunning,
            IdempotencyConflict,
            GenerationMismatch,
            TooManyExecutions,
            ExecutionsLimit,
            ServerStopping,
        ),
    },
    dependencies=[requires("kernels", "execute")],
)
async def run_code(
    request: Request,
    idempotency: IdempotencyDep,
    kernel: KernelDep,
    permission: PermissionDep,
    body: RunCode,
    wait: CheckedWaitDep,
    if_generation: IfGenerationDep,
    max_bytes: MaxBytesDep = DEFAULT_MAX_BYTES,
    idempotency_key: IdempotencyKeyDep = None,
) -> Response:
    """Execute code as soon as the kernel is free: it waits behind all that was asked for before.

    Until it is sent to the kernel it can be cancelled without a trace. Which session executes code
    is told by `session`; its output goes to every client of the kernel, as usual.
    """

    if body.cancel_on_disconnect and not wait:
        raise InvalidRequest("cancel_on_disconnect: this is for a request that waits: ?wait=")

    async def make(new_id: str) -> str:
        asked_for = body.model_dump(exclude={"cancel_on_disconnect"})
        code = Code(**asked_for, if_generation=if_generation)
        try:
            execution = await kernel.executions.ask(code, new_id)
        except KernelkeepError:
            kernel.reports.refused("execute", _encode(code))
            raise
        kernel.reports.executed(execution.id, execution.session, _encode(code))
        return execution.id

    asked = fingerprint(body)
    scope = f"executions of {kernel.id}"
    known = kernel.executions
    find = partial(known.known_id, within=KEY_SECONDS)
    how = Making(make, find, known.noted, known.withdraw)
    execution_id = await idempotency.once(scope, idempotency_key, asked, how)
    # The execution is looked up by its id: an earlier request with the same key may have made it,
    # and it may be forgotten by now (404).
    execution = kernel.executions.get(execution_id)
    if (made_for := caller()) is not None:
        made_for.execution_id = execution.id
    return _waiting(
        kernel,
        execution,
        wait,
        lambda: _answer(request, kernel, execution, max_bytes, created=True, waited=wait > 0),
        permission,
        cancel_on_disconnect=body.cancel_on_disconnect,
    )


@router.get(
    "",
    operation_id="executions_list",
    response_model=schema_of(list[ExecutionModel]),
    responses=errors(InvalidRequest, *_NOT_FOUND),
    dependencies=[requires("kernels", "read")],
)
async def list_executions(
    kernel: KernelDep,
    limit: Annotated[int, Query(ge=1, le=1000, description="How many at the most.")] = 100,
    before: Annotated[
        str | None, Query(description="Those before the execution with this id.")
    ] = None,
) -> Response:
    """List the newest executions, in the order in which they were asked for.

    All that are under way are known, and the last 1000 that have ended.
    """
    page = kernel.executions.page(limit, before)
    return Response(_encode([info(execution) for execution in page]), media_type="application/json")


@router.get(
    "/{execution_id}",
    operation_id="executions_get",
    response_model=schema_of(ExecutionResultModel),
    responses=errors(InvalidRequest, WaitTooLong, *_NOT_FOUND),
    dependencies=[requires("kernels", "read")],
)
async def get_execution(
    request: Request,
    kernel: KernelDep,
    execution: ExecutionDep,
    permission: PermissionDep,
    wait: CheckedWaitDep,
    max_bytes: MaxBytesDep = DEFAULT_MAX_BYTES,
) -> Response:
    """Look at an execution and its output so far, as often as you like."""
    answer = partial(_answer, request, kernel, execution, max_bytes)
    return _waiting(kernel, execution, wait, answer, permission)


@router.get(
    "/{execution_id}/events",
    operation_id="executions_follow",
    status_code=200,  # FastAPI cannot tell it from a class of response of our own
    response_class=EventStream,
    response_model=ExecutionEventModel,
    responses={
        200: {
            "description": "A stream that ends with the event `ended`. Each `data` field, or "
            "line, is an `ExecutionEventModel`.",
            "content": {
                SSE: stream_of("ExecutionEventModel"),
                NDJSON: stream_of("ExecutionEventModel"),
            },
        },
        204: {"description": "It has ended, and the client has all its events."},
        **errors(InvalidRequest, AfterBeyondEnd, *_NOT_FOUND),
    },
    dependencies=[requires("kernels", "read")],
)
async def follow_execution(
    request: Request,
    manager: ManagerDep,
    kernel: KernelDep,
    execution: ExecutionDep,
    permission: PermissionDep,
    after: AfterDep = None,
    last_event_id: LastEventIdDep = None,
) -> Response:
    """Follow an execution: what has happened so far, then what happens, until it has ended.

    As Server-Sent Events, or with `Accept: application/x-ndjson` as JSON, one a line. A browser's
    `EventSource` that comes back after the end is told by 204 to stay away.
    """
    start = resume_after(after, last_event_id)
    keepalive = manager.settings.stream_keepalive
    log = kernel.traffic.log
    every = follow(kernel.executions, log, execution, start, keepalive, permission)
    events = while_permitted(every, permission)
    if wants(request) == NDJSON:
        return JSONLines(events)
    last = execution.last_seq
    if last_event_id and execution.ended and last is not None and int(last_event_id) >= last:
        return Response(status_code=204)
    return EventStream(events)


@router.get(
    "/{execution_id}/outputs/{number}",
    operation_id="executions_get_output",
    response_class=Response,
    responses={
        200: {
            "description": "The data, in its own media type.",
            "content": FILE,
        },
        **errors(InvalidRequest, *_NOT_FOUND, OutputNotFound),
    },
    dependencies=[requires("kernels", "read")],
)
async def get_output(
    kernel: KernelDep,
    execution: ExecutionDep,
    number: Annotated[int, Path(ge=0, description="Which of the outputs, from 0.")],
    mime: Annotated[
        str | None, Query(description="Which of its media types; the richest, if left out.")
    ] = None,
) -> Response:
    """Fetch the data of one output as it is: images as their bytes.

    It is served so that no browser runs it: as a download, in a sandbox.
    """
    blob = await output(kernel.traffic.log, execution, number, mime or None)
    extension = mimetypes.guess_extension(blob.media_type.partition(";")[0]) or ".bin"
    disposition = f'attachment; filename="output-{number}{extension}"'
    headers = {**INERT, "Content-Disposition": disposition, "Content-Type": blob.media_type}
    if isinstance(blob.data, bytes):
        return Response(blob.data, headers=headers)
    return StreamingResponse(blob.data, headers=headers)


@router.post(
    "/{execution_id}/cancel",
    operation_id="executions_cancel",
    response_model=schema_of(ExecutionModel),
    responses=errors(*BODY, *_NOT_FOUND, KernelUnreachable),
    dependencies=[requires("kernels", "execute")],
)
async def cancel_execution(
    kernel: KernelDep,
    execution: ExecutionDep,
    body: Annotated[CancelExecution | None, Body()] = None,
) -> Response:
    """Cancel an execution. One that waits never runs; one that runs is interrupted.

    With `kill_after` its kernel's process is killed if the interrupt does not end it. Cancelling
    one that has ended changes nothing.
    """
    asked = body or CancelExecution()
    if execution.ended:
        kernel.reports.refused("cancel", execution_id=execution.id)
    else:
        kernel.reports.cancelled(execution.id)
    await kernel.executions.cancel(execution, asked.kill_after)
    return Response(_encode(info(execution)), media_type="application/json")


@router.post(
    "/{execution_id}/input",
    operation_id="executions_answer",
    status_code=204,
    responses=errors(
        *BODY,
        InvalidIdempotencyKey,
        MessageTypeNotAllowed,
        *_NOT_FOUND,
        NoInputRequested,
        PromptGone,
        IdempotencyConflict,
    ),
    dependencies=[requires("kernels", "execute")],
)
async def answer_input(
    idempotency: IdempotencyDep,
    kernel: KernelDep,
    execution: ExecutionDep,
    body: InputModel,
    idempotency_key: IdempotencyKeyDep = None,
) -> Response:
    """Answer what an execution asks its user for.

    With `prompt`, or an `Idempotency-Key`, an answer that is sent twice is never taken for the
    answer to the next prompt.
    """
    content = _encode({"value": body.value})

    async def make(_: str) -> str:
        try:
            kernel.executions.answer(execution, body.value, body.prompt)
        except KernelkeepError:
            kernel.reports.refused("input", content, execution_id=execution.id)
            raise
        kernel.reports.answered(execution.session, content)
        return execution.id

    scope = f"answers to {execution.id} of {kernel.id}"
    await idempotency.once(scope, idempotency_key, fingerprint(body), Making(make))
    return Response(status_code=204)
