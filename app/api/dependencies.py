"""The dependencies of routes, and the classes of routes that read bodies or are polled."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from functools import partial
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Path
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..managers.errors import InvalidRequest, KernelkeepError, RequestTooLarge
from ..managers.kernels.callers import CallersKernels
from ..managers.kernels.finding import Permission
from ..managers.kernels.kernel import Kernel
from ..managers.owners.callers_tokens import CallersTokens
from ..managers.sessions.sessions import SessionManager
from ..managers.telemetry.audit import AuditLog
from .access import declared_access
from .authorization import Authorization, authorization_of
from .bodies import OFF_LOOP_BYTES, check_nesting, parse
from .idempotency import OwnersKeys
from .identity import User, principal_of
from .views import CallersEvents

__all__ = [
    "AuditDep",
    "AuthorizationDep",
    "CodeRoute",
    "EventsDep",
    "IdempotencyDep",
    "IdempotencyKeyDep",
    "IfGenerationDep",
    "JSONRoute",
    "KernelDep",
    "KernelIdDep",
    "ManagerDep",
    "PermissionDep",
    "PolledRoute",
    "SessionsDep",
    "SmallRoute",
    "TokensDep",
    "UserDep",
    "fingerprint",
    "of_state",
    "read_body",
]

MAX_BODY_BYTES: Final = 2**20
"""The largest request body that most routes read; above it the answer is 413."""

DISCARD_BYTES: Final = 32 * 2**20
DISCARD_SECONDS: Final = 5.0
"""How many bytes of a refused body are read and thrown away, and for how many seconds, at most."""


# The dependencies are coroutines although they await nothing: FastAPI calls functions in a thread.


def of_state(name: str) -> Any:
    """The dependency on what a request's state has under this name (`app.lifespan.State`)."""

    async def get(connection: HTTPConnection) -> Any:
        return getattr(connection.state, name)

    return Depends(get)


ManagerDep = Annotated[CallersKernels, of_state("kernels")]
SessionsDep = Annotated[SessionManager, of_state("sessions")]
EventsDep = Annotated[CallersEvents, of_state("events")]
IdempotencyDep = Annotated[OwnersKeys, of_state("idempotency")]
TokensDep = Annotated[CallersTokens, of_state("tokens")]
AuditDep = Annotated[AuditLog, of_state("audit")]
KernelIdDep = Annotated[str, Path(description="The kernel's id.")]


async def _kernel(manager: ManagerDep, kernel_id: KernelIdDep) -> Kernel:
    return manager.get(kernel_id)


KernelDep = Annotated[Kernel, Depends(_kernel)]


async def _permission(manager: ManagerDep, kernel: KernelDep) -> Permission:
    return manager.permission("read", kernel)


PermissionDep = Annotated[Permission, Depends(_permission)]


IdempotencyKeyDep = Annotated[
    str | None,
    Header(
        description="Any text. A second request with the same key and body does nothing anew.",
        json_schema_extra={"pattern": "^[ -~]{1,255}$"},
    ),
]


_GENERATION: Final = "^[1-9][0-9]{0,8}$"


async def _if_generation(
    if_generation: Annotated[
        str | None,
        Header(
            description="A kernel's `generation`: the code runs in that process, or not at all.",
            json_schema_extra={"pattern": _GENERATION},
        ),
    ] = None,
) -> int | None:
    if if_generation is None:
        return None
    if not re.fullmatch(_GENERATION, if_generation):
        raise InvalidRequest("If-Generation: must be a whole number from 1")
    return int(if_generation)


IfGenerationDep = Annotated[int | None, Depends(_if_generation)]


async def _user(connection: HTTPConnection) -> User:
    return User(connection.state.users, principal_of(connection))


UserDep = Annotated[User, Depends(_user)]


async def _authorization(connection: HTTPConnection) -> Authorization:
    return authorization_of(connection)


AuthorizationDep = Annotated[Authorization, Depends(_authorization)]


def fingerprint(body: BaseModel) -> bytes:
    """The body in one form: equal for any two bodies that ask for the same."""
    return json.dumps(body.model_dump(), sort_keys=True).encode()


class JSONRoute(APIRoute):
    """A route whose body is read as JSON whatever its Content-Type says.

    Clients of Jupyter servers send JSON as text/plain, as a form, or with no type at all. The
    authorizer is asked before the body is read and parsed, so that a client without the permission
    cannot make the server do that work.
    """

    max_body_bytes = MAX_BODY_BYTES

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        access, limit = declared_access(self), self.max_body_bytes
        assert access is not None, "a route declares its access"

        async def handle(request: Request) -> Response:
            if request.method in ("POST", "PUT", "PATCH"):
                try:
                    await access(request)
                except KernelkeepError:
                    await _discard(request.stream())
                    raise
                request = await _as_json(request, limit)
            return await handler(request)

        return handle


class CodeRoute(JSONRoute):
    """A route that takes code, which may be long: its bodies may be larger."""

    max_body_bytes = 16 * 2**20


class SmallRoute(JSONRoute):
    """A route whose bodies are kept small, since each subscriber or each later answer gets them."""

    max_body_bytes = 64 * 2**10


class PolledRoute(APIRoute):
    """A route whose endpoint is called with the manager and the parameters of its path and query.

    Clients poll it, and FastAPI's dependencies would take longer than all the rest of the answer.
    The OpenAPI document is made from the endpoint as usual. The endpoint's parameters must have the
    names of the path's and be strings; those of the query may be left out.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        access = declared_access(self)
        assert access is not None, "a route declares its access"
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint
        optional = [parameter.alias for parameter in self.dependant.query_params]

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            connection = HTTPConnection(scope)
            await access(connection)
            given = dict(scope["path_params"])
            if optional and scope["query_string"]:
                query = connection.query_params
                given |= {name: query[name] for name in optional if name in query}
            response = await endpoint(scope["state"]["kernels"], **given)
            await response(scope, receive, send)

        self.app = answer


async def _as_json(request: Request, limit: int) -> Request:
    body = await read_body(request, limit)
    large = len(body) > OFF_LOOP_BYTES
    check = partial(parse, body) if large else partial(check_nesting, body)
    parsed = await asyncio.to_thread(check) if large else check()
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
    headers.append((b"content-type", b"application/json"))

    # FastAPI alone reads from this, once. A response that waits for its client to go away is given
    # the ASGI server's own `receive`.
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {**request.scope, "headers": headers}
    return _Parsed(scope, receive, parsed) if large else Request(scope, receive)


class _Parsed(Request):
    """A request whose body was parsed in a thread before FastAPI asks for it."""

    def __init__(self, scope: Scope, receive: Receive, parsed: Any) -> None:
        super().__init__(scope, receive)
        self._parsed = parsed

    async def json(self) -> Any:
        return self._parsed


async def _discard(stream: AsyncIterator[bytes]) -> None:
    """Read and throw away the rest of a refused body, within `DISCARD_BYTES` and `DISCARD_SECONDS`.

    If the server answered and closed while the client still sends, the connection would be reset,
    and the client would not see the answer.
    """
    taken = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(DISCARD_SECONDS):
            # The pace of a body has a bound of its own (`KernelkeepHTTPProtocol.check`); the bounds
            # here are for one that comes fast and never ends, under any ASGI server.
            async for chunk in stream:
                taken += len(chunk)
                if taken > DISCARD_BYTES:
                    return


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """The body of a request. Raises `RequestTooLarge`, or `InvalidRequest` if it breaks off."""
    body = bytearray()
    try:
        async for chunk in (stream := request.stream()):
            body += chunk
            if len(body) > limit:
                await _discard(stream)
                raise RequestTooLarge(f"The body has more than {limit} bytes")
    except ClientDisconnect:
        raise InvalidRequest("The body is incomplete") from None
    return bytes(body)
