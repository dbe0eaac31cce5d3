"""The routes of the application, in the order in which they are tried."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from fastapi import APIRouter, Request, WebSocket
from fastapi.routing import APIRoute, APIWebSocketRoute
from starlette.routing import BaseRoute

from .api import (
    contents,
    events,
    executions,
    files,
    kernel_events,
    kernels,
    kernelspecs,
    me,
    messages,
    overview,
    owners,
    probes,
    process_output,
    server,
    sessions,
    shares,
    tokens,
    usage,
)
from .api.access import Access, declared_access, requires
from .api.docs import docs_router
from .api.login import login_router
from .api.metrics import metrics_router
from .api.page import page_router
from .api.page_frame import frame_router
from .api.parts import others_of
from .identity_providers.logins import Logins
from .managers.errors import InvalidRequest, NotFound
from .settings import Settings
from .ws.channels import channels_endpoint
from .ws.events import events_endpoint

__all__ = ["own_words", "public_routes", "routers_for"]


def routers_for(settings: Settings, logins: Logins) -> list[APIRouter]:
    """The routers of an application with these settings.

    Routes are tried in this order for each request, so those that are used most come first.
    """
    routers = [
        kernels.router,
        server.router,
        executions.router,
        messages.router,
        shares.router,
        usage.router,
        process_output.router,
        kernel_events.router,
        overview.router,
        kernelspecs.router,
        sessions.router,
        me.router,
        tokens.router,
        owners.router,
        events.router,
        probes.router,
        docs_router(public=settings.open_docs, home=not settings.serve_page),
        _websockets(settings),
    ]
    if settings.serve_page:
        routers += [page_router(), frame_router(), login_router(logins)]
    if settings.allow_contents:
        routers += [contents.router, files.router]
    if settings.serve_metrics:
        routers.append(metrics_router(public=not settings.authenticate_prometheus))
    return routers


def _websockets(settings: Settings) -> APIRouter:
    router = APIRouter()
    for path, endpoint, name, resource in (
        (
            "/api/kernels/{kernel_id}/channels",
            channels_endpoint(settings),
            "kernels_channels",
            "kernels",
        ),
        ("/api/events/subscribe", events_endpoint(others_of), "events_subscribe", "events"),
    ):
        needs = [requires(resource, "execute")]
        router.add_api_websocket_route(path, endpoint, name=name, dependencies=needs)
        router.add_api_route(
            path, _no_request, methods=["GET"], include_in_schema=False, dependencies=needs
        )
    router.add_api_websocket_route(
        "/{path:path}", _no_websocket, dependencies=[requires("api", "read", activity=False)]
    )
    return router


async def _no_request(request: Request) -> None:
    """Refuse a plain request for the address of a WebSocket, as a Jupyter server does."""
    kernel_id = request.path_params.get("kernel_id")
    if kernel_id is not None:
        request.state.kernels.get(kernel_id)
    raise InvalidRequest(
        'Can "Upgrade" only to "WebSocket": this is the address of a WebSocket. A proxy on the way '
        "has to pass on the headers Upgrade and Connection"
    )


async def _no_websocket(_websocket: WebSocket) -> None:
    """Refuse a WebSocket at any other path with 404 and a body, as a request over HTTP."""
    raise NotFound("Not Found")


def public_routes(routers: Iterable[APIRouter]) -> dict[str, Access]:
    """The declarations of the public routes, by path.

    Raises `RuntimeError` for a route that declares no access.
    """
    public = {}
    for route in chain.from_iterable(router.routes for router in routers):
        access = declared_access(route)
        if access is None:
            raise RuntimeError(f"the route {getattr(route, 'path', route)} declares no access")
        if access.public:
            assert isinstance(route, APIRoute | APIWebSocketRoute)
            public[route.path] = access
    return public


def own_words(root_path: str, routes: Iterable[BaseRoute]) -> frozenset[str]:
    """The segments of the routes' paths that are not parameters: the service's own words."""
    paths = [root_path, *(getattr(route, "path", "") for route in routes)]
    segments = chain.from_iterable(path.split("/") for path in paths)
    return frozenset(word for word in segments if word and not word.startswith("{"))
