"""The application: the one place where the rooms are wired together."""

from __future__ import annotations

import logging
import secrets
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any, TypedDict

from fastapi import APIRouter, FastAPI, WebSocket
from fastapi.routing import APIRoute, APIWebSocketRoute

from app import __version__
from app.api import kernels, kernelspecs, server
from app.api.access import AccessMiddleware, declared_access, requires
from app.api.docs import docs_router
from app.api.errors import add_error_handlers
from app.api.etags import ETagMiddleware
from app.logs import hide_tokens
from app.managers.errors import NotFound
from app.managers.multikernel import MultiKernelManager
from app.settings import Settings
from app.ws.channels import channels_endpoint

__all__ = ["create_app"]

logger = logging.getLogger(__name__)


class State(TypedDict):
    """What the lifespan builds, reached through ``request.state``."""

    kernels: MultiKernelManager


def create_app(settings: Settings | None = None) -> FastAPI:
    """The ASGI application; without ``settings`` they are read from the environment."""
    settings = settings or Settings()
    token = settings.token.get_secret_value()
    generated = not token and settings.auth == "token"
    if generated:
        token = secrets.token_hex(24)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        hide_tokens(token)
        if generated:
            # To the person who started it, not to the log.
            print(f"kernelkeep: this run's token is {token}", file=sys.stderr)  # noqa: T201
        manager = MultiKernelManager(settings)
        try:
            yield {"kernels": manager}
        finally:
            await manager.close()

    app = FastAPI(
        title="kernelkeep",
        version=__version__,
        summary="Starts, drives and keeps Jupyter kernels.",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    routers = [
        server.router,
        kernels.router,
        kernelspecs.router,
        docs_router(public=settings.open_docs),
        _websockets(settings),
    ]
    for router in routers:
        app.include_router(router)
    add_error_handlers(app)
    app.add_middleware(ETagMiddleware)
    app.add_middleware(
        AccessMiddleware, settings=settings, token=token, public=_public_paths(routers)
    )
    return app


def _websockets(settings: Settings) -> APIRouter:
    router = APIRouter()
    router.add_api_websocket_route(
        "/api/kernels/{kernel_id}/channels",
        channels_endpoint(settings),
        name="kernels_channels",
        dependencies=[requires("kernels", "execute")],
    )
    router.add_api_websocket_route(
        "/{path:path}", _no_websocket, dependencies=[requires("api", "read", activity=False)]
    )
    return router


async def _no_websocket(_websocket: WebSocket) -> None:
    """Any other path: 404 with a body, as over HTTP, not just a refused handshake."""
    raise NotFound("Not Found")


def _public_paths(routers: Iterable[APIRouter]) -> list[str]:
    """The paths of the routes that are declared open to everybody.

    Raises `RuntimeError` for a route that declares nothing.
    """
    paths = []
    for route in chain.from_iterable(router.routes for router in routers):
        access = declared_access(route)
        if access is None:
            raise RuntimeError(f"the route {getattr(route, 'path', route)} declares no access")
        if access.action is None:
            assert isinstance(route, APIRoute | APIWebSocketRoute)
            paths.append(route.path)
    return paths


def __getattr__(name: str) -> Any:
    """``app.main:app``, for ``uvicorn app.main:app``: made when it is first asked for."""
    if name == "app":
        application = globals()["app"] = create_app()
        return application
    raise AttributeError(name)
