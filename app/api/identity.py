"""The users of the service, by the identities that they are shown with."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import msgspec
from starlette.requests import HTTPConnection

from ..managers.owners.principal import Identity, Principal

__all__ = ["UPDATABLE_FIELDS", "Identity", "User", "Users", "principal_of", "show_principal"]

UPDATABLE_FIELDS: Final = ("name", "display_name", "initials", "avatar_url", "color")
"""The fields of an identity that its user may change: the defaults of Jupyter's provider."""

MAX_CHANGED: Final = 10_000
"""How many users' changes are remembered; the oldest are forgotten first."""

_PRINCIPAL: Final = "kernelkeep.principal"
"""The key in a request's scope for the principal that `AccessMiddleware` has found."""


def show_principal(scope: MutableMapping[str, Any], principal: Principal) -> None:
    """Note in a request's scope who makes the request."""
    scope[_PRINCIPAL] = principal


def principal_of(connection: HTTPConnection) -> Principal:
    """Who makes a request. Raises `KeyError` on a public route that was asked without a token."""
    principal: Principal = connection.scope[_PRINCIPAL]
    return principal


class Users:
    """The identities of the users, which each user can change until the server ends.

    Jupyter servers store such changes in a login cookie; this server has no cookies.
    """

    def __init__(self) -> None:
        self._changed: dict[str, Identity] = {}  # oldest change first

    def identity(self, principal: Principal) -> Identity:
        """The identity of a principal, with the changes that its owner has made."""
        return self._changed.get(principal.owner, principal.identity)

    def update(self, principal: Principal, changes: Mapping[str, str | None]) -> None:
        """Change some of `UPDATABLE_FIELDS`."""
        assert set(changes) <= set(UPDATABLE_FIELDS)
        changed = msgspec.structs.replace(self.identity(principal), **changes)
        self._changed.pop(principal.owner, None)
        self._changed[principal.owner] = changed
        while len(self._changed) > MAX_CHANGED:
            del self._changed[next(iter(self._changed))]


class User:
    """The user who makes one request."""

    __slots__ = ("_users", "principal")

    def __init__(self, users: Users, principal: Principal) -> None:
        self._users = users
        self.principal = principal

    @property
    def identity(self) -> Identity:
        """The identity as it is now."""
        return self._users.identity(self.principal)

    def update(self, changes: Mapping[str, str | None]) -> None:
        """Change some of `UPDATABLE_FIELDS`."""
        self._users.update(self.principal, changes)
