"""The application: the one place where the rooms are wired together."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import chain
from typing import Any, TypedDict

from fastapi import APIRouter, FastAPI, WebSocket
from fastapi.routing import APIRoute, APIWebSocketRoute
from pydantic import ValidationError
from pydantic_settings import SettingsError

from . import __version__
from .api import (
    contents,
    events,
    executions,
    files,
    kernels,
    kernelspecs,
    me,
    messages,
    probes,
    server,
    sessions,
)
from .api.access import Access, AccessMiddleware, declared_access, requires
from .api.authorization import Authorization, Authorizer, load_authorizer
from .api.docs import docs_router
from .api.errors import add_error_handlers
from .api.etags import ETagMiddleware
from .api.idempotency import IdempotencyKeys
from .api.identity import User
from .api.metrics import metrics_router
from .api.openapi import complete
from .api.prefix import PathMiddleware
from .api.prometheus import Metrics
from .api.readiness import Readiness
from .api.request_ids import RequestIdMiddleware
from .api.timing import TimingMiddleware
from .cli import refuse
from .logs import SHORT, hide_tokens
from .managers.errors import NotFound
from .managers.files.service import ContentsService
from .managers.handover.registry import Registry, check_registry
from .managers.kernels.construction import multi_kernel_manager
from .managers.kernels.multikernel import MultiKernelManager
from .managers.processes.keeper.client import check_state_dir
from .managers.sessions.sessions import SessionManager
from .managers.sessions.store import SessionStore, check_database
from .managers.telemetry.audit import AuditLog, check_audit_log
from .managers.telemetry.counters import Counters
from .managers.telemetry.events import Events, read_schemas
from .settings import Settings, explain
from .signals import at_stop_signals
from .tokens import TOKEN_VARIABLE, make_token, wipe_variable
from .ws.channels import channels_endpoint
from .ws.events import subscribe

__all__ = ["create_app"]

logger = logging.getLogger(__name__)


class State(TypedDict):
    """What the lifespan builds, reached through ``request.state``."""

    kernels: MultiKernelManager
    events: Events
    metrics: Metrics
    readiness: Readiness
    sessions: SessionManager
    user: User
    authorization: Authorization
    contents: ContentsService
    idempotency: IdempotencyKeys


def create_app(
    settings: Settings | None = None, *, authorizer: Authorizer | None = None
) -> FastAPI:
    """The ASGI application; without ``settings`` they are read from the environment and a file.

    ``authorizer`` decides in the place of the one that the settings name. Raises `CannotLoad`,
    `UnusableDatabase` or `UnusableRegistry` for an option that names what cannot be used, and
    `TooOpen` for a state directory in which others could get at kernels that are kept.
    """
    settings = settings or Settings()
    authorizer = authorizer or load_authorizer(settings.authorizer_class)
    check_database(settings.database_filepath)
    if settings.keeps:
        check_registry(settings.state_dir)
    check_audit_log(settings.audit_log)
    check_state_dir(settings)
    token = settings.token.get_secret_value()
    wipe_variable(TOKEN_VARIABLE)  # code in kernels can read what is shown of this process
    generated = not token and settings.auth == "token"
    if generated:
        token = make_token(settings)
    event_schemas = read_schemas(settings.extra_event_schema_paths)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        hide_tokens(token)
        if settings.auth == "token" and len(token) < SHORT:
            logger.warning("the token has fewer than %d characters: it can be guessed", SHORT)
        if generated:
            # To the person who started it, not to the log.
            print(f"kernelkeep: this run's token is {token}", file=sys.stderr)  # noqa: T201
        bus, counters = Events(event_schemas), Counters()
        user = User()
        async with AsyncExitStack() as stack:
            audit = AuditLog(settings.audit_log, counters, lambda: user.identity.username)
            stack.push_async_callback(audit.close)
            registry = None
            if settings.keeps:
                registry = Registry(settings.state_dir)
                stack.push_async_callback(registry.close)
            manager = multi_kernel_manager(settings, bus, counters, audit, registry)
            stack.push_async_callback(manager.close)
            await manager.adopt_kernels()
            stack.enter_context(at_stop_signals(manager.begin_stop))
            session_manager = SessionManager(manager, SessionStore(settings.sessions_filepath))
            stack.push_async_callback(session_manager.close)
            contents_service = ContentsService(
                settings.root_dir, settings.state_dir, settings.config_files
            )
            stack.push_async_callback(contents_service.close)
            metrics = Metrics(manager, counters)
            stack.callback(metrics.close)
            yield {
                "kernels": manager,
                "events": bus,
                "metrics": metrics,
                "readiness": Readiness(manager),
                "sessions": session_manager,
                "user": user,
                "authorization": Authorization(authorizer, user),
                "contents": contents_service,
                "idempotency": IdempotencyKeys(),
            }

    # In the order in which a request is held against them: first what is asked for all the time.
    routers = [
        kernels.router,
        server.router,
        executions.router,
        messages.router,
        kernelspecs.router,
        sessions.router,
        me.router,
        events.router,
        probes.router,
        docs_router(public=settings.open_docs),
        _websockets(settings),
    ]
    if settings.allow_contents:
        routers += [contents.router, files.router]
    if settings.serve_metrics:
        routers.append(metrics_router(public=not settings.authenticate_prometheus))
    app = FastAPI(
        title="kernelkeep",
        version=__version__,
        summary="Starts, drives and keeps Jupyter kernels.",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # It would hand on whole query strings, and tokens may come in one.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        # Not include_router(): it looks for the route of a request twice in each router.
        routes=[route for router in routers for route in router.routes],
    )
    complete(app, routers, settings.root_path)
    add_error_handlers(app, routers)
    app.add_middleware(ETagMiddleware)
    app.add_middleware(
        AccessMiddleware, settings=settings, token=token, public=_public_routes(routers)
    )
    app.add_middleware(TimingMiddleware)
    app.add_middleware(RequestIdMiddleware)
    words = _own_words([settings.root_path, *(getattr(route, "path", "") for route in app.routes)])
    app.add_middleware(PathMiddleware, prefix=settings.root_path, words=words)
    return app


def _own_words(paths: Iterable[str]) -> frozenset[str]:
    """The segments of paths that are no parameters."""
    segments = chain.from_iterable(path.split("/") for path in paths)
    return frozenset(word for word in segments if word and not word.startswith("{"))


def _websockets(settings: Settings) -> APIRouter:
    router = APIRouter()
    router.add_api_websocket_route(
        "/api/kernels/{kernel_id}/channels",
        channels_endpoint(settings),
        name="kernels_channels",
        dependencies=[requires("kernels", "execute")],
    )
    router.add_api_websocket_route(
        "/api/events/subscribe",
        subscribe,
        name="events_subscribe",
        dependencies=[requires("events", "execute")],
    )
    router.add_api_websocket_route(
        "/{path:path}", _no_websocket, dependencies=[requires("api", "read", activity=False)]
    )
    return router


async def _no_websocket(_websocket: WebSocket) -> None:
    """Any other path: 404 with a body, as over HTTP, not just a refused handshake."""
    raise NotFound("Not Found")


def _public_routes(routers: Iterable[APIRouter]) -> dict[str, Access]:
    """What the routes that are open to everybody have declared, by their paths.

    Raises `RuntimeError` for a route that declares nothing.
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


def __getattr__(name: str) -> Any:
    """The application, made when it is first asked for.

    That is for ``uvicorn app.main:app`` in a clone and ``uvicorn kernelkeep.main:app`` elsewhere.
    """
    if name == "app":
        try:
            application = globals()["app"] = create_app()
        except (ValidationError, SettingsError) as error:
            refuse(explain(error))
        return application
    raise AttributeError(name)
