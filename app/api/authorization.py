"""Authorization: one object decides what the user may do, and it can be replaced.

Any object with `Authorizer`'s method will do: its class is named in the option
``authorizer_class``, or the object is given to ``create_app``. It is asked before every route that
touches a resource, WebSockets included, if the scopes of the caller's credential allow the action.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable
from typing import Final, Protocol

from starlette.requests import HTTPConnection

from ..managers.errors import AuthorizerFailed, NotAuthorized, ScopeMissing
from ..managers.owners.principal import Principal
from ..plugins import load_object
from .identity import Identity, User, principal_of

__all__ = [
    "AllowAll",
    "Authorization",
    "Authorizer",
    "authorization_of",
    "load_authorizer",
    "require_scope",
]

logger = logging.getLogger(__name__)

DECISION_SECONDS: Final = 10.0
"""How long an asynchronous authorizer may take; it may have to ask another service."""


class Authorizer(Protocol):
    """Decides whether a user may do an action on a resource."""

    def is_authorized(
        self, identity: Identity, action: str, resource: str
    ) -> bool | Awaitable[bool]:
        """Whether ``identity`` may do ``action`` with ``resource``.

        ``action`` is ``read``, ``write`` or ``execute``; ``resource`` is ``kernels``,
        ``kernelspecs``, ``sessions``, ``contents``, ``events`` or ``api``. The method may be a
        coroutine. If it raises, the request is refused.
        """


class AllowAll:
    """The default authorizer: a client that has the token may do everything."""

    def is_authorized(self, identity: Identity, action: str, resource: str) -> bool:  # noqa: ARG002
        """Return True."""
        return True


class Authorization:
    """Decides what the user of one request may do, by its scopes and then by the authorizer."""

    __slots__ = ("_authorizer", "_user")

    def __init__(self, authorizer: Authorizer, user: User) -> None:
        self._authorizer = authorizer
        self._user = user

    async def allows(self, action: str, resource: str) -> bool:
        """Whether the user may do this.

        Raises `AuthorizerFailed` if the authorizer raises, or does not answer in time.
        """
        if not self._user.principal.scopes.allow(action, resource):
            return False
        try:
            decision = self._authorizer.is_authorized(self._user.identity, action, resource)
            if not isinstance(decision, bool) and inspect.isawaitable(decision):
                async with asyncio.timeout(DECISION_SECONDS):
                    decision = await decision
            return bool(decision)
        except Exception as error:
            logger.exception("the authorizer failed for %s on %s", action, resource)
            raise AuthorizerFailed("The authorizer could not decide") from error

    async def require(self, action: str, resource: str) -> None:
        """Return if the user may do this. Raises `NotAuthorized` or `AuthorizerFailed`."""
        require_scope(self._user.principal, action, resource)
        if not await self.allows(action, resource):
            raise NotAuthorized(action, resource)


def require_scope(principal: Principal, action: str, resource: str) -> None:
    """Return if a scope allows this. Raises `ScopeMissing`."""
    if not principal.scopes.allow(action, resource):
        raise ScopeMissing(action, resource)


def authorization_of(connection: HTTPConnection) -> Authorization:
    """The `Authorization` of the user who makes a request."""
    state = connection.scope["state"]
    return Authorization(state["authorizer"], User(state["users"], principal_of(connection)))


def load_authorizer(name: str) -> Authorizer:
    """An authorizer of the class ``module:Class``. Raises `CannotLoad`."""
    authorizer: Authorizer = load_object("authorizer_class", name, "is_authorized")
    return authorizer
