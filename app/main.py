"""The application: the one place where the rooms are wired together."""

from __future__ import annotations

import logging
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
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
    shares,
)
from .api import (
    tokens as api_tokens,
)
from .api.access import Access, AccessMiddleware, declared_access, requires
from .api.authorization import Authorizer, load_authorizer
from .api.docs import docs_router
from .api.errors import add_error_handlers
from .api.etags import ETagMiddleware
from .api.idempotency import IdempotencyKeys
from .api.identities import IdentityProvider, IdentityProviders, ServerToken, load_provider
from .api.identity import Users
from .api.metrics import metrics_router
from .api.openapi import complete
from .api.prefix import PathMiddleware
from .api.prometheus import Metrics
from .api.readiness import Readiness
from .api.request_ids import RequestIdMiddleware
from .api.timing import TimingMiddleware
from .api.tokens import note_token
from .api.views import Views
from .cli import refuse
from .logs import SHORT, hide_tokens
from .managers.errors import NotFound
from .managers.files.service import ContentsService
from .managers.handover.registry import Registry, check_registry
from .managers.kernels.construction import multi_kernel_manager
from .managers.kernels.multikernel import MultiKernelManager
from .managers.owners.token_list import TokenList, check_tokens
from .managers.processes.keeper.client import check_state_dir
from .managers.sessions.sessions import SessionBook
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
    """The objects that the lifespan builds; routes reach them through ``request.state``."""

    kernels: MultiKernelManager
    metrics: Metrics
    readiness: Readiness
    views: Views
    audit: AuditLog
    users: Users
    authorizer: Authorizer
    contents: ContentsService


def create_app(
    settings: Settings | None = None,
    *,
    authorizer: Authorizer | None = None,
    identity_provider: IdentityProvider | None = None,
) -> FastAPI:
    """The ASGI application. Settings that are not given are read from the environment and a file.

    ``authorizer`` and ``identity_provider`` are used in place of those that the settings name; the
    provider is asked about tokens that are neither the server's own nor in its list. Raises
    `CannotLoad`, `UnusableDatabase`, `UnusableRegistry` or `UnusableTokens` for an option that
    names an unusable class, file or directory, and `TooOpen` for a state directory in which other
    users could reach kernels.
    """
    settings = settings or Settings()
    authorizer = authorizer or load_authorizer(settings.authorizer_class)
    check_database(settings.database_filepath)
    if settings.keeps:
        check_registry(settings.state_dir)
    check_audit_log(settings.audit_log)
    check_state_dir(settings)
    token = settings.token.get_secret_value()
    wipe_variable(TOKEN_VARIABLE)  # code in kernels can read this process's /proc/PID/environ
    generated = not token and settings.auth == "token"
    if generated:
        token = make_token(settings)
    check_tokens(settings.state_dir)
    tokens = TokenList(settings.state_dir)
    others: list[IdentityProvider] = [tokens]
    identity_provider = identity_provider or load_provider(settings.identity_provider_class)
    if identity_provider is not None:
        others.append(identity_provider)
    identities = IdentityProviders(ServerToken(token), others)
    event_schemas = read_schemas(settings.extra_event_schema_paths)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[State]:
        hide_tokens(token)
        if settings.auth == "token" and len(token) < SHORT:
            logger.warning("the token has fewer than %d characters: it can be guessed", SHORT)
        if generated:
            # The token goes to the person who has started the server, and not to the log.
            print(f"kernelkeep: this run's token is {token}", file=sys.stderr)  # noqa: T201
        bus, counters = Events(event_schemas), Counters()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(identities.close)
            audit = AuditLog(settings.audit_log, counters)
            stack.push_async_callback(audit.close)
            await tokens.open(partial(note_token, audit))
            registry = None
            if settings.keeps:
                registry = Registry(settings.state_dir)
                stack.push_async_callback(registry.close)
            manager = multi_kernel_manager(settings, bus, counters, audit, registry)
            stack.push_async_callback(manager.close)
            # Before the first request, so that no client finds a kernel missing that the last
            # server has left. (Kernels whose adoption takes too long come later.)
            await manager.adopt_kernels()
            stack.enter_context(at_stop_signals(manager.begin_stop))
            sessions_of_all = SessionBook(manager, SessionStore(settings.sessions_filepath))
            stack.push_async_callback(sessions_of_all.close)
            contents_service = ContentsService(
                settings.root_dir, settings.state_dir, settings.config_files
            )
            stack.push_async_callback(contents_service.close)
            metrics = Metrics(manager, counters)
            stack.callback(metrics.close)
            yield {
                "kernels": manager,
                "metrics": metrics,
                "readiness": Readiness(manager),
                "views": Views(manager, sessions_of_all, bus, IdempotencyKeys(), tokens),
                "audit": audit,
                "users": Users(),
                "authorizer": authorizer,
                "contents": contents_service,
            }

    # Routes are tried in this order for each request, so those that are used most come first.
    routers = [
        kernels.router,
        server.router,
        executions.router,
        messages.router,
        shares.router,
        kernelspecs.router,
        sessions.router,
        me.router,
        api_tokens.router,
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
        # FastAPI's telemetry would record whole query strings, and a token may be in one.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
        # `include_router` would look for the route of a request twice in each router.
        routes=[route for router in routers for route in router.routes],
    )
    complete(app, routers, settings.root_path)
    add_error_handlers(app, routers)
    app.add_middleware(ETagMiddleware)
    public = _public_routes(routers)
    app.add_middleware(AccessMiddleware, settings=settings, identities=identities, public=public)
    app.add_middleware(TimingMiddleware)
    app.add_middleware(RequestIdMiddleware)
    words = _own_words([settings.root_path, *(getattr(route, "path", "") for route in app.routes)])
    app.add_middleware(PathMiddleware, prefix=settings.root_path, words=words)
    return app


def _own_words(paths: Iterable[str]) -> frozenset[str]:
    """The segments of paths that are no parameters: the service's own words."""
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
    """Refuse a WebSocket at any other path with 404 and a body, as a request over HTTP."""
    raise NotFound("Not Found")


def _public_routes(routers: Iterable[APIRouter]) -> dict[str, Access]:
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


def __getattr__(name: str) -> Any:
    """Make the application when ``app`` is first read from this module.

    So ``uvicorn app.main:app`` works in a clone, and ``uvicorn kernelkeep.main:app`` elsewhere, and
    importing the module has no effect.
    """
    if name == "app":
        try:
            application = globals()["app"] = create_app()
        except (ValidationError, SettingsError) as error:
            refuse(explain(error))
        return application
    raise AttributeError(name)
