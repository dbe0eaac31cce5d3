"""Access: the checks before any route, and the permissions that each route needs.

Everything is closed by default. `AccessMiddleware` refuses a request without a token that an
identity provider knows before a route is looked up, unless its path is that of a route declared
`PUBLIC`. Each route declares with `requires` on which resource it does which action; `Access` holds
that against the scopes of the token, and asks the authorizer.

The only credentials are tokens. There are no cookies and no passwords, which browsers would send by
themselves, so a web page elsewhere cannot use a person's browser to get in.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal
from urllib.parse import parse_qs

from fastapi import Depends
from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..callers import caller
from ..managers.errors import IdentityUnavailable, KernelkeepError
from ..managers.kernels.callers import CallersKernels
from ..managers.limits.shares import Shares
from ..managers.owners.principal import Principal
from ..managers.telemetry.audit import AuditLog
from ..origins import is_loopback, origin_of, parse_authority, parse_origin
from ..protocol.subprotocols import token_in
from ..settings import Settings
from .authorization import authorization_of, require_scope
from .endings import serve_while_valid
from .errors import STANDARD_HEADERS, error_response, response_to
from .heads import Head
from .identities import IdentityProviders
from .identity import principal_of, show_principal
from .parts import is_part
from .prometheus import Metrics
from .views import show_views
from .wrong_tokens import WrongTokens

__all__ = [
    "AUTHENTICATED",
    "PROBE",
    "PUBLIC",
    "Access",
    "AccessMiddleware",
    "declared_access",
    "requires",
]

Action = Literal["read", "write", "execute"]

_GRANTED: Final = "kernelkeep.granted"
"""The key in a request's scope for the `Access` that the authorizer has granted."""

_NO_ACTIVITY: Final = "no_track_activity"

_PREFLIGHT: Final = {
    "Access-Control-Allow-Headers": (
        "accept, content-type, authorization, x-xsrftoken, "
        "idempotency-key, last-event-id, if-none-match, x-request-id, traceparent"
    ),
    "Access-Control-Allow-Methods": "GET, PUT, POST, PATCH, DELETE, OPTIONS",
}


_STANDARD_HEADERS: Final = [
    (name.lower().encode("latin-1"), value.encode("latin-1"))
    for name, value in STANDARD_HEADERS.items()
]

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

_REFUSALS: Final = frozenset({403, 404, 429, 503})
"""The statuses of refusals that the audit log notes: for a request's Host, Origin or token."""

_EXPOSED: Final = "location, retry-after, etag, x-request-id"
"""The headers of a response that a script of another origin may read, beside the usual ones."""


class Access:
    """What a route needs: an action on a resource, just the token, or nothing."""

    def __init__(
        self,
        resource: str,
        action: Action | None,
        *,
        activity: bool,
        public: bool = False,
        any_host: bool = False,
        also: Sequence[tuple[str, Action]] = (),
        scope: tuple[Action, str] | None = None,
    ) -> None:
        self.resource = resource
        self.action = action
        self.asked: list[tuple[str, Action]] = [] if action is None else [(resource, action), *also]
        """Every resource that the authorizer is asked about, with the action on it, in order."""
        self.public = public
        self.any_host = any_host
        self.scope = scope
        """An action and a resource that a scope must allow, and that no authorizer is asked about.
        """
        self._activity = activity

    async def __call__(self, connection: HTTPConnection) -> None:
        """Ask the authorizer whether the user may use the route, and note the use of the API.

        This is also done before a WebSocket is accepted. A `JSONRoute` does it before it reads the
        body; FastAPI's call afterwards then does nothing. Raises `NotAuthorized` or
        `AuthorizerFailed`.
        """
        if connection.scope.get(_GRANTED) is self:
            return
        if self.asked:
            authorization = authorization_of(connection)
            for resource, action in self.asked:
                await authorization.require(action, resource)
        if self.scope is not None:
            require_scope(principal_of(connection), *self.scope)
        self._check_kernel(connection)
        connection.scope[_GRANTED] = self
        if self._activity and not _untracked(connection):
            connection.scope["state"]["kernels"].touch()

    def _check_kernel(self, connection: HTTPConnection) -> None:
        """Raise `KernelNotFound` or `NotAuthorized` if the caller may not do this with the kernel.

        That is the kernel that the path names. The check comes before anything else that a route
        looks at, so that no other answer tells whether there is a kernel with that id.
        """
        kernel_id = connection.scope.get("path_params", {}).get("kernel_id")
        if kernel_id is None or self.action is None or self.resource != "kernels":
            return
        kernels: CallersKernels = connection.scope["state"]["kernels"]
        if not kernels.principal.scopes.everything:
            kernels.require(self.action, kernel_id)


def _untracked(connection: HTTPConnection) -> bool:
    """Whether the client asks that a request does not count as use of the API."""
    return bool(connection.scope["query_string"]) and _NO_ACTIVITY in connection.query_params


def requires(
    resource: str,
    action: Action,
    *,
    activity: bool = True,
    also: Sequence[tuple[str, Action]] = (),
) -> Any:
    """The dependency by which a route declares what it needs.

    With ``activity`` a request to it counts as use of the API. ``also`` names further resources
    that the route touches, each with an action.
    """
    return Depends(Access(resource, action, activity=activity, also=also))


AUTHENTICATED: Any = Depends(Access("", None, activity=True))
"""The dependency of a route that needs the token, but no permission of the authorizer."""

PUBLIC: Any = Depends(Access("", None, activity=False, public=True))
"""The dependency of a route that needs no token."""

PROBE: Any = Depends(Access("", None, activity=False, public=True, any_host=True))
"""The dependency of a route that needs no token and answers whatever the Host header is."""


def declared_access(route: object) -> Access | None:
    """The `Access` that a route has declared, or None."""
    for dependency in getattr(route, "dependencies", ()):
        if isinstance(dependency.dependency, Access):
            return dependency.dependency
    return None


class AccessMiddleware:
    """Checks Host, token and Origin of every request and WebSocket, and adds security headers.

    The order of the checks and the answers are those of Jupyter servers: 403 for a foreign Host,
    403 without a valid token, 404 for a foreign Origin (403 for a WebSocket). With a valid token
    the Origin does not matter. An address that sends wrong tokens again and again gets 429 for a
    while; a request with the right token is served even then, for people can share an address. A
    token that has expired or was revoked is refused like a wrong one, but does not count: nobody
    guesses it, and a notebook that goes on polling must not shut out others at its address.
    Who shows a valid token is noted in the scope (`principal_of`), and for the logs. A request
    counts against its owner's share, and gets 429 if that is used up (`Shares`).
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        identities: IdentityProviders,
        public: Mapping[str, Access],
    ) -> None:
        self._app = app
        self._settings = settings
        self._identities = identities
        self._public = public
        self._wrong_tokens = WrongTokens()
        names = [name.lower() for name in (*settings.local_hostnames, *settings.allowed_hosts)]
        self._hosts = frozenset(names)
        self._host_suffixes = tuple(name[1:] for name in names if name.startswith("*."))
        self._any_host = settings.any_host and not settings.allowed_hosts
        self._origin_pattern = (
            re.compile(settings.allow_origin_pat) if settings.allow_origin_pat else None
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        head = Head(scope["headers"])
        public = self._public.get(scope["path"].removeprefix(scope.get("root_path", "")))
        answer = self._answer_to_anybody(scope, head, public)
        token = _token(scope, head)
        principal = self._known(token)
        if principal is None and token and public is None and answer is None:
            try:
                principal = await self._identities.identify(token)
            except IdentityUnavailable as error:
                retry = {"Retry-After": str(error.retry_after)}
                answer = error_response(error.status, error.message, error.code, retry)
        # The race: the credential may end between the look at `over` here and `Principal.opened` in
        # `serve_while_valid`, behind which an end closes the request. Nothing awaits between the
        # two but `_serve_within`, which looks at `over` again: so no end is missed.
        guesses, shown = bool(token) and principal is None, principal
        if principal is not None and principal.over:
            principal = None
        origin = head.get(b"origin")
        allowed = self._allowed_origin(origin, authenticated=principal is not None)
        send = _with_headers(send, allowed, credentials=self._settings.allow_credentials)
        served = public is not None and public.any_host and scope["type"] == "http"
        if answer is None and not served:
            answer = self._refusal(scope, head, public, principal, guesses=guesses)
        if answer is not None:
            _note_refusal(scope, answer, shown)
            await answer(scope, receive, send)
            return
        shares: Shares | None = scope.get("state", {}).get("shares")
        show_views(scope, principal)
        if principal is None:
            await self._app(scope, receive, send)
            return
        show_principal(scope, principal)
        if (found := caller()) is not None:
            found.user, found.credential = principal.owner, principal.credential
        # There are no shares if the ASGI server does not run the lifespan. A request of another
        # replica for a part of an answer counts there, where the client has asked for the whole.
        if shares is None or is_part(scope):
            await self._serve(principal, scope, receive, send)
        else:
            await self._serve_within(shares, principal, scope, receive, send)

    async def _serve_within(
        self, shares: Shares, principal: Principal, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve a request, or refuse it if its owner's share is used up."""
        is_websocket = scope["type"] == "websocket"
        # A refused WebSocket still counts as a request: to ask for it costs, too.
        try:
            shares.take_request(principal)
            if is_websocket:
                await shares.open_websocket(principal)
        except KernelkeepError as error:
            answer = response_to(error)
            _note_refusal(scope, answer, principal)
            await answer(scope, receive, send)
            return
        try:
            if is_websocket and principal.over:  # it has ended while other replicas were asked
                answer = error_response(403, "Forbidden", "unauthorized")
                _note_refusal(scope, answer, principal)
                await answer(scope, receive, send)
            else:
                await self._serve(principal, scope, receive, send)
        finally:
            if is_websocket:
                shares.close_websocket(principal)

    async def _serve(
        self, principal: Principal, scope: Scope, receive: Receive, send: Send
    ) -> None:
        if principal is self._identities.own.principal:
            await self._app(scope, receive, send)
        else:
            await serve_while_valid(self._app, principal, scope, receive, send)

    def _answer_to_anybody(
        self, scope: Scope, head: Head, public: Access | None
    ) -> Response | None:
        """The answer to a request if it does not depend on the token; None if it does."""
        # No path of the service has an encoded slash, and a proxy's rules may read it as a slash.
        raw_path: bytes = scope.get("raw_path") or b""
        if b"%" in raw_path and b"%2f" in raw_path.lower():
            return error_response(400, "An encoded slash in the path", "bad_request")
        if head.hosts > 1:  # a proxy may have looked at another one than we do
            return error_response(400, "More than one Host header", "bad_request")
        if public is not None and public.any_host and scope["type"] == "http":
            return None
        if not self._is_known_host(head.get(b"host") or ""):
            return error_response(403, "Forbidden", "forbidden_host")
        if self._settings.auth == "none" and not _is_local(scope):
            # Another program than ours serves the application, and at another address than `host`.
            return error_response(403, "auth=none is for loopback addresses only", "not_loopback")
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            return Response(headers=_PREFLIGHT)
        return None

    def _refusal(
        self,
        scope: Scope,
        head: Head,
        public: Access | None,
        principal: Principal | None,
        *,
        guesses: bool,
    ) -> Response | None:
        """The refusal of a request for its Host, Origin or token; None to serve the request.

        ``guesses`` is whether its token is one that no provider knows.
        """
        if principal is not None and self._settings.auth == "token":
            return None
        if guesses and public is None:
            slowed = self._slowed(scope)
            if slowed is not None:
                return slowed
        if not self._is_same_origin(scope, head, head.get(b"origin")):
            if scope["type"] == "websocket":
                return error_response(
                    403, "Cross origin websockets not allowed", "forbidden_origin"
                )
            return error_response(404, "Not Found", "forbidden_origin")
        if principal is not None or public is not None:
            return None
        return error_response(403, "Forbidden", "unauthorized")

    def _slowed(self, scope: Scope) -> Response | None:
        """Count a wrong token; returns the refusal for an address that has sent too many."""
        address: str = (scope.get("client") or ("",))[0]
        seconds = self._wrong_tokens.shown(address, time.monotonic())
        metrics: Metrics | None = scope.get("state", {}).get("metrics")
        if metrics is not None:  # None if the ASGI server does not run the lifespan
            metrics.counters.wrong_tokens["slowed" if seconds else "refused"] += 1
        if not seconds:
            return None
        retry = {"Retry-After": str(seconds)}
        return error_response(429, "Too many wrong tokens", "too_many_wrong_tokens", retry)

    def _known(self, token: str) -> Principal | None:
        if self._settings.auth == "none":
            return self._identities.own.principal
        return self._identities.known(token)

    def _is_known_host(self, host: str) -> bool:
        if self._any_host:
            return True
        authority = parse_authority(host)
        if authority is None:
            return False
        name = authority.host
        return name in self._hosts or name.endswith(self._host_suffixes) or is_loopback(name)

    def _is_same_origin(self, scope: Scope, head: Head, origin: str | None) -> bool:
        site = head.get(b"sec-fetch-site")
        is_websocket = scope["type"] == "websocket"
        if origin is None:
            # Browsers send an Origin with requests that change something, but a page can make them
            # leave it out. Then Sec-Fetch-Site tells where the request comes from.
            changes = is_websocket or scope["method"] not in _SAFE_METHODS
            return not (changes and site in ("cross-site", "same-site"))
        host = head.get(b"host")
        if host is None or self._is_configured_origin(origin):
            return True
        if is_websocket and site in ("same-origin", "none"):
            return True
        scheme: str = scope["scheme"]
        scheme = {"ws": "http", "wss": "https"}.get(scheme, scheme)
        found = parse_origin(origin)
        return found is not None and found == origin_of(scheme, host)

    def _is_configured_origin(self, origin: str) -> bool:
        allow = self._settings.allow_origin
        if allow:
            return allow in ("*", origin)
        return self._origin_pattern is not None and bool(self._origin_pattern.fullmatch(origin))

    def _allowed_origin(self, origin: str | None, *, authenticated: bool) -> str | None:
        """The value of Access-Control-Allow-Origin, or None if the response has no such header."""
        if self._settings.allow_origin:
            return self._settings.allow_origin
        if origin is None:
            return None
        if self._is_configured_origin(origin):
            return origin
        return origin if authenticated and self._settings.auth == "token" else None


def _note_refusal(scope: Scope, answer: Response, shown: Principal | None) -> None:
    """Note in the audit log that a request was refused, and whose token it has shown, if any's."""
    audit: AuditLog | None = scope.get("state", {}).get("audit")
    code = getattr(answer, "code", "")
    if audit is None or not code or answer.status_code not in _REFUSALS:
        return
    if shown is not None and (found := caller()) is not None:
        found.user, found.credential = shown.owner, shown.credential
    audit.refuse(f"{scope.get('method', 'WebSocket')} {scope['path']}", code, known=False)


def _token(scope: Scope, head: Head) -> str:
    """The token of a request: of its query, its header or, for a WebSocket, its subprotocols."""
    query: bytes = scope["query_string"]
    if b"token=" in query:
        token: str = parse_qs(query.decode("latin-1")).get("token", [""])[0]
        if token:
            return token
    # `bytes.split` takes only ASCII white space for it. `str.split` would also split at U+00A0 and
    # U+0085, which can be bytes of letters in UTF-8.
    scheme, value, *_ = *head.raw(b"authorization").split(None, 1), b"", b""
    if scheme.lower() not in (b"token", b"bearer"):
        return token_in(scope.get("subprotocols", ()))
    value = value.strip()
    try:  # curl, tornado and aiohttp send letters beyond ASCII as UTF-8
        return value.decode()
    except UnicodeDecodeError:  # requests, http.client and browsers send them as Latin-1
        return value.decode("latin-1")


def _is_local(scope: Scope) -> bool:
    """Whether a client has connected to a loopback address or a Unix socket of this server."""
    host, port = scope.get("server") or ("", None)
    return port is None or host == "localhost" or is_loopback(host)


def _with_headers(send: Send, origin: str | None, *, credentials: bool) -> Send:
    """A ``send`` that adds the headers of every Jupyter server's response, and those of CORS."""

    async def send_with_headers(message: Message) -> None:
        if message["type"] in (
            "http.response.start",
            "websocket.accept",
            "websocket.http.response.start",
        ):
            own = [*message.get("headers", ())]
            names = {name for name, _ in own}
            own += [header for header in _STANDARD_HEADERS if header[0] not in names]
            if origin is not None:
                headers = MutableHeaders(raw=own)
                headers["Access-Control-Allow-Origin"] = origin
                headers["Access-Control-Expose-Headers"] = _EXPOSED
                if origin != "*":
                    headers.add_vary_header("Origin")
                if credentials:
                    headers["Access-Control-Allow-Credentials"] = "true"
            message["headers"] = own
        await send(message)

    return send_with_headers
