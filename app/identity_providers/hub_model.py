"""Makes principals of what a JupyterHub says of users and services. Pure functions."""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

from ..managers.owners.principal import Principal
from ..managers.owners.scopes import Scopes
from .naming import Refused, granted, group_names, identity_of, user_name

__all__ = ["HubRules", "HubUser", "NoModel", "principal_of"]

SERVICE_PREFIX: Final = "service:"
"""The prefix of owners' names that are names of services: a user can have the same name."""

CUSTOM_PREFIX: Final = "custom:kernelkeep:"
"""The beginning of the Hub's custom scopes that are scopes of this service."""

_ACCESS: Final = "access:services"

_TOKEN_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class NoModel(Exception):
    """What the Hub answers is no model of a user or a service."""


class HubRules(NamedTuple):
    """How a Hub's models are read. ``service`` is this service's name at the Hub, or empty."""

    service: str
    default_scopes: Scopes


class HubUser(Principal):
    """The principal who shows a token of the Hub.

    The Hub is asked about ``token`` again and again. ``confirmed`` and ``asked`` are seconds of the
    monotonic clock: when the question was asked that the Hub has answered with this principal, and
    when it was asked for the last time.
    """

    __slots__ = ("asked", "confirmed", "token")

    token: str
    confirmed: float
    asked: float

    def says_the_same(self, other: HubUser) -> bool:
        """Whether the Hub has told the same owner, groups and scopes of both."""
        mine = self.identity, self.groups, self.scopes
        return mine == (other.identity, other.groups, other.scopes)


def principal_of(model: Any, rules: HubRules) -> HubUser:
    """The principal whom a model describes, as ``GET /hub/api/user`` returns it.

    Raises `NoModel` if the value is no such model, and `Refused` if its user may not come in.
    """
    if not isinstance(model, dict) or model.get("kind") not in ("user", "service"):
        raise NoModel
    scopes, name = model.get("scopes"), model.get("name")
    if not isinstance(name, str) or not isinstance(scopes, list):
        raise NoModel
    if not all(isinstance(scope, str) for scope in scopes):
        raise NoModel
    if not {_ACCESS, f"{_ACCESS}!service={rules.service}"} & {*scopes}:
        raise Refused("the token has no scope access:services of the Hub for this service")
    owner = user_name(name)
    if owner.startswith(SERVICE_PREFIX):
        raise Refused("a user's name that is that of a service")
    texts = [_own_scope(scope, name, rules) for scope in scopes if scope.startswith(CUSTOM_PREFIX)]
    identity = identity_of(owner, owner)
    if model["kind"] == "service":
        owner = user_name(f"{SERVICE_PREFIX}{owner}")
        identity = identity_of(owner, owner)
    return HubUser(
        identity,
        granted(texts, rules.default_scopes),
        groups=group_names(model.get("groups")),
        credential=_credential(model.get("token_id")),
    )


def _own_scope(scope: str, name: str, rules: HubRules) -> str:
    """The scope of this service that a custom scope is, or a text that is no scope.

    The Hub can restrict a scope to a user, a group or a service. A restriction to the user itself,
    or to this service, changes nothing here.
    """
    permission, found, restriction = scope.removeprefix(CUSTOM_PREFIX).partition("!")
    kind, _, value = restriction.partition("=")
    if not found or (kind, value) in (("user", name), ("service", rules.service)):
        return permission
    if kind in ("user", "group") and value:
        return f"{permission}!{'owner' if kind == 'user' else 'group'}={value}"
    return f"{permission}!"


def _credential(token_id: Any) -> str:
    if isinstance(token_id, str) and _TOKEN_ID.fullmatch(token_id):
        return f"jupyterhub:{token_id}"
    return "jupyterhub"
