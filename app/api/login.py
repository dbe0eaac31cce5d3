"""Logging in with a browser, for the web page: where to, coming back, and the token of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Request, Response
from msgspec import Meta
from starlette.responses import RedirectResponse

from ..identity_providers.errors import LoginNotBegun, LoginRefused
from ..identity_providers.logins import Logins
from ..managers.errors import IdentityUnavailable
from .access import PUBLIC
from .dependencies import SmallRoute
from .openapi import errors
from .schemas import schema_of

__all__ = ["login_router"]

COOKIE: Final = "kernelkeep-login"
"""The cookie of a browser in which a login has begun. It lets nobody do anything."""

LOGIN_SECONDS: Final = 600
"""How many seconds a person may take to log in."""

CALLBACK: Final = "/oauth_callback"
"""The path at which the browser comes back: JupyterHub's for its services."""


class LoginWayModel(msgspec.Struct):
    """A service that people can log in with."""

    name: Annotated[str, Meta(description="The name that people know it by.")]
    url: Annotated[str, Meta(description="Where the browser goes, from the page at `/`.")]


class LoginWays(msgspec.Struct):
    """The ways to log in."""

    providers: list[LoginWayModel]


class LoggedIn(msgspec.Struct):
    """A token of whoever has logged in."""

    token: str


_encode = msgspec.json.Encoder().encode


def login_router(logins: Logins) -> APIRouter:
    """The routes of a server with a page. None of them needs a token."""
    router = APIRouter(tags=["login"], dependencies=[PUBLIC], route_class=SmallRoute)

    @router.get(
        "/api/login",
        operation_id="login_ways",
        response_model=schema_of(LoginWays),
        responses=errors(),
    )
    async def ways() -> Response:
        """The ways to log in with a browser; there may be none."""
        found = [LoginWayModel(way.name, f"login/{word}") for word, way in logins.ways.items()]
        return Response(_encode(LoginWays(found)), media_type="application/json")

    @router.post(
        "/api/login",
        operation_id="login_take",
        response_model=schema_of(LoggedIn),
        responses=errors(LoginNotBegun, LoginRefused, IdentityUnavailable),
    )
    async def take(request: Request) -> Response:
        """The token of whoever has logged in with this browser, which is given once."""
        token = logins.take(request.cookies.get(COOKIE, ""))
        response = Response(_encode(LoggedIn(token)), media_type="application/json")
        response.headers["Cache-Control"] = "no-store"
        response.delete_cookie(COOKIE, path=_path(request))
        return response

    @router.get(CALLBACK, name="oauth_callback", include_in_schema=False)
    async def callback(request: Request, state: str = "", code: str = "") -> Response:
        """Come back from the service, and go on to the page, which takes the token."""
        # A browser that reloads this address comes to the page, too, which tells what is wrong.
        try:
            await logins.come_back(
                request.cookies.get(COOKIE, ""), state, code, _callback_url(request)
            )
        except LoginNotBegun:
            return _redirect("./#/login-failed")
        return _redirect("./#/logged-in")

    # One route a way, so that the paths that need no token can be listed exactly.
    for word in logins.ways:
        router.add_api_route(
            f"/login/{word}", _begin(logins, word), include_in_schema=False, name=f"login_{word}"
        )
    return router


def _begin(logins: Logins, word: str) -> Callable[[Request], Awaitable[Response]]:
    async def begin(request: Request) -> Response:
        cookie, address = await logins.begin(word, _callback_url(request))
        response = _redirect(address)
        response.set_cookie(
            COOKIE,
            cookie,
            max_age=LOGIN_SECONDS,
            path=_path(request),
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="lax",  # it has to come along when another site sends the browser back
        )
        return response

    return begin


def _callback_url(request: Request) -> str:
    return str(request.base_url).rstrip("/") + CALLBACK


def _path(request: Request) -> str:
    path: str = request.scope.get("root_path", "")
    return f"{path}/"


def _redirect(address: str) -> Response:
    return RedirectResponse(
        address, 302, {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
    )
