"""The application, made from its settings: checks, routes, middleware and lifespan."""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import Any, Final

from fastapi import APIRouter, FastAPI
from pydantic import ValidationError
from pydantic_settings import SettingsError

from . import __version__
from .api.access import AccessMiddleware
from .api.authorization import Authorizer, load_authorizer
from .api.errors import add_error_handlers
from .api.etags import ETagMiddleware
from .api.forwarding import ForwardingMiddleware
from .api.identities import IdentityProvider, IdentityProviders, ServerToken, load_provider
from .api.openapi import complete
from .api.prefix import PathMiddleware
from .api.request_ids import RequestIdMiddleware
from .api.timing import TimingMiddleware
from .hub_environment import HUB_TOKEN_VARIABLE
from .identity_options import CLIENT_SECRET_VARIABLES
from .identity_providers.configured import configured_logins, configured_providers
from .identity_providers.logins import Logins
from .keeper.protocol import TooOpen, check_private
from .lifespan import Lifespan, lifespan_of
from .logs import SHORT, hide_tokens
from .managers.handover.registry import check_registry
from .managers.handover.store import UnusableRegistry
from .managers.limits.limits import LimitPolicy
from .managers.owners.token_list import TokenList
from .managers.owners.token_table import UnusableTokens
from .managers.owners.tokens import check_tokens
from .managers.processes.engines.defaults import defaults_of
from .managers.processes.hosts.errors import HostUnusable
from .managers.processes.hosts.new_joining import check_joining
from .managers.processes.isolation.checks import CannotIsolate, check_isolation
from .managers.processes.run_files import UnusableDirectory, check_directories
from .managers.sessions.store import UnusableDatabase, check_database
from .managers.telemetry.audit import check_audit_log
from .managers.telemetry.events import read_schemas
from .plugins import CannotLoad, from_extra
from .routes import own_words, public_routes, routers_for
from .settings import Settings, explain, refuse
from .token_places import token_place
from .tokens import TOKEN_VARIABLE, make_token, wipe_variable

__all__ = ["REFUSALS", "create_app", "explain_refusal"]

logger = logging.getLogger(__name__)

_OPTIONS: Final[dict[type[Exception], str]] = {
    HostUnusable: "--agent-listen: ",
    UnusableDatabase: "--database-filepath: ",
    TooOpen: "--state-dir: ",
    UnusableDirectory: "--state-dir: ",
    UnusableRegistry: "--state-dir: ",
    UnusableTokens: "--state-dir: ",
    CannotIsolate: "",
    CannotLoad: "",
}
"""The errors that `create_app` raises for an unusable option, each with the option's name, or with
nothing if the error's text names the option."""

REFUSALS: Final = tuple(_OPTIONS)
"""The errors that `create_app` raises for an unusable option (`explain_refusal`)."""


def explain_refusal(error: Exception) -> str:
    """The sentence, with the option's name, for one of `REFUSALS`."""
    option = next(option for kind, option in _OPTIONS.items() if isinstance(error, kind))
    return f"{option}{error}"


def create_app(
    settings: Settings | None = None,
    *,
    authorizer: Authorizer | None = None,
    identity_provider: IdentityProvider | None = None,
) -> FastAPI:
    """The ASGI application. Settings that are not given are read from the environment and a file.

    ``authorizer`` and ``identity_provider`` are used in place of those that the settings name; the
    provider is asked about tokens that are neither the server's own nor in its list. Raises
    `CannotLoad`, `UnusableDatabase`, `UnusableDirectory`, `UnusableRegistry` or `UnusableTokens`
    for an option that names an unusable class, file or directory, `TooOpen` for a state directory
    in which other users could reach kernels, and `CannotIsolate` if kernels cannot be isolated as
    an option asks.
    """
    settings = settings or Settings()
    authorizer = authorizer or load_authorizer(settings.authorizer_class)
    provider = identity_provider or load_provider(settings.identity_provider_class)
    _check_engines(settings)
    _check_files(settings)
    url = settings.registry_url.get_secret_value()
    tokens = TokenList(token_place(url, settings.state_dir))
    token = settings.token.get_secret_value()
    # Code in kernels can read this process's /proc/PID/environ.
    for name in (TOKEN_VARIABLE, HUB_TOKEN_VARIABLE, *CLIENT_SECRET_VARIABLES):
        wipe_variable(name)
    generated = settings.wants_token
    if generated:
        token = make_token(settings)
    others: list[IdentityProvider] = [tokens, *configured_providers(settings)]
    if provider is not None:
        others.append(provider)
    identities = IdentityProviders(ServerToken(token), others)
    schemas = read_schemas(settings.extra_event_schema_paths)
    announce = partial(_announce, settings, token, generated)
    policy = LimitPolicy.of(settings)
    logins = Logins(configured_logins(settings), identities.identify)
    at_end = [identities.close, logins.close]
    lifespan = lifespan_of(settings, authorizer, schemas, at_end, tokens, policy, announce)
    routers = routers_for(settings, logins)
    app = _fastapi(routers, lifespan)
    complete(app, routers, settings.root_path)
    add_error_handlers(app, routers)
    _add_middleware(app, routers, settings, identities)
    return app


def _check_engines(settings: Settings) -> None:
    try:
        defaults_of(settings.engines)
    except ValueError as error:
        raise CannotLoad(f"--engines: {error}") from None


def _check_files(settings: Settings) -> None:
    """Check the files and directories that the lifespan will use.

    Raises one of `REFUSALS` now for those that it could not use later.
    """
    _prepare_state_dir(settings)  # before anything is written there
    if settings.replicated:
        _check_shared_registry(settings)
    else:
        if settings.keeps:
            check_registry(settings.state_dir)
        _check_sessions(settings)
    check_audit_log(settings.audit_log)
    check_isolation(settings)
    check_joining(settings)
    if not settings.replicated:
        check_tokens(settings.state_dir)


def _check_sessions(settings: Settings) -> None:
    """Refuse a file of the sessions that cannot be used, by the option that has named it."""
    try:
        check_database(settings.sessions_filepath)
    except UnusableDatabase as error:
        if settings.sessions_filepath == settings.database_filepath:
            raise
        raise CannotLoad(f"--state-dir: {error}") from None


def _prepare_state_dir(settings: Settings) -> None:
    """Make the state directory, which the ``kernelkeep`` command alone would have made already."""
    directory = settings.state_dir
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError:
        raise CannotLoad(f"--state-dir: {directory} is no directory") from None
    except OSError as error:
        message = f"--state-dir: {directory} cannot be used: {error.strerror}"
        raise CannotLoad(message) from None
    check_directories(settings)
    check_private(directory)


def _check_shared_registry(settings: Settings) -> None:
    with from_extra("postgresql", "registry_url", "psycopg"):
        from .managers.replicas.registry import check_shared_registry
    try:
        check_shared_registry(settings)
    except UnusableRegistry as error:
        raise CannotLoad(f"--registry-url: {error}") from None


def _announce(settings: Settings, token: str, generated: bool) -> None:
    hide_tokens(token)
    if token and settings.auth == "token" and len(token) < SHORT:
        logger.warning("the token has fewer than %d characters: it can be guessed", SHORT)
    if generated:
        # The token goes to the person who has started the server, and not to the log.
        print(f"kernelkeep: this run's token is {token}", file=sys.stderr)  # noqa: T201


def _fastapi(routers: list[APIRouter], lifespan: Lifespan) -> FastAPI:
    return FastAPI(
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


def _add_middleware(
    app: FastAPI, routers: list[APIRouter], settings: Settings, identities: IdentityProviders
) -> None:
    """Wrap the routes in middleware: what is added last gets a request first."""
    app.add_middleware(ETagMiddleware)
    public = public_routes(routers)
    app.add_middleware(AccessMiddleware, settings=settings, identities=identities, public=public)
    app.add_middleware(TimingMiddleware)
    app.add_middleware(RequestIdMiddleware)
    words = own_words(settings.root_path, app.routes)
    app.add_middleware(PathMiddleware, prefix=settings.root_path, words=words)
    if settings.replicated:
        app.add_middleware(ForwardingMiddleware, prefix=settings.root_path)


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
        except REFUSALS as error:
            refuse(explain_refusal(error))
        return application
    raise AttributeError(name)
