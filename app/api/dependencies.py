"""What routes are given, and how they answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

from fastapi import Depends, Header, Path
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from app.api.access import declared_access
from app.managers.authorization import Authorization
from app.managers.errors import InvalidRequest, RequestTooLarge
from app.managers.events import Events
from app.managers.identity import User
from app.managers.kernel import Kernel
from app.managers.multikernel import MultiKernelManager
from app.managers.sessions import SessionManager

__all__ = [
    "AuthorizationDep",
    "EventsDep",
    "IdempotencyKeyDep",
    "JSONRoute",
    "KernelDep",
    "KernelIdDep",
    "ManagerDep",
    "PolledRoute",
    "SessionsDep",
    "UserDep",
    "fingerprint",
    "read_body",
]

MAX_BODY_BYTES: Final = 16 * 2**20
"""The largest request body that is read; above it the answer is 413."""


# Coroutines, although they wait for nothing: FastAPI calls plain functions in a thread.


async def _manager(connection: HTTPConnection) -> MultiKernelManager:
    manager: MultiKernelManager = connection.state.kernels
    return manager


ManagerDep = Annotated[MultiKernelManager, Depends(_manager)]
KernelIdDep = Annotated[str, Path(description="The kernel's id.")]


async def _kernel(manager: ManagerDep, kernel_id: KernelIdDep) -> Kernel:
    return manager.get(kernel_id)


KernelDep = Annotated[Kernel, Depends(_kernel)]


async def _sessions(connection: HTTPConnection) -> SessionManager:
    sessions: SessionManager = connection.state.sessions
    return sessions


SessionsDep = Annotated[SessionManager, Depends(_sessions)]


async def _events(connection: HTTPConnection) -> Events:
    events: Events = connection.state.events
    return events


EventsDep = Annotated[Events, Depends(_events)]


IdempotencyKeyDep = Annotated[
    str | None,
    Header(
        description="Any text. A second request with the same key and body does nothing anew.",
        json_schema_extra={"pattern": "^[ -~]{1,255}$"},
    ),
]


async def _user(connection: HTTPConnection) -> User:
    user: User = connection.state.user
    return user


UserDep = Annotated[User, Depends(_user)]


async def _authorization(connection: HTTPConnection) -> Authorization:
    authorization: Authorization = connection.state.authorization
    return authorization


AuthorizationDep = Annotated[Authorization, Depends(_authorization)]


def fingerprint(body: BaseModel) -> bytes:
    """The same for bodies that ask for the same."""
    return json.dumps(body.model_dump(), sort_keys=True).encode()


class JSONRoute(APIRoute):
    """A route whose body is read as JSON whatever its Content-Type says.

    Clients of Jupyter servers send JSON as text/plain, as a form, or with no type at all.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            if request.method in ("POST", "PUT", "PATCH"):
                request = await _as_json(request)
            return await handler(request)

        return handle


class PolledRoute(APIRoute):
    """A route whose endpoint is called with the manager and the parameters of its path only.

    What clients ask for all the time does not go through FastAPI's dependencies, which take longer
    than all the rest; the document is made from the endpoint as ever. The endpoint's parameters are
    named as they are in the path, and strings.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        access = declared_access(self)
        assert access is not None, "a route declares its access"
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint

        async def answer(scope: Scope, receive: Receive, send: Send) -> None:
            connection = HTTPConnection(scope)
            await access(connection)
            response = await endpoint(scope["state"]["kernels"], **scope["path_params"])
            await response(scope, receive, send)

        self.app = answer


async def _as_json(request: Request) -> Request:
    body = await read_body(request)
    headers = [(name, value) for name, value in request.scope["headers"] if name != b"content-type"]
    headers.append((b"content-type", b"application/json"))

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return Request({**request.scope, "headers": headers}, receive)


async def read_body(request: Request, limit: int = MAX_BODY_BYTES) -> bytes:
    """The body. Raises `RequestTooLarge`, or `InvalidRequest` when it breaks off."""
    body = bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise RequestTooLarge(f"The body has more than {limit} bytes")
    except ClientDisconnect:
        raise InvalidRequest("The body is incomplete") from None
    return bytes(body)
