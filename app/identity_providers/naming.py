"""Turns what another service says about a user into names and scopes of this service."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from ..managers.owners.names import InvalidName, owner_name
from ..managers.owners.principal import Identity
from ..managers.owners.scopes import InvalidScope, Scope, Scopes

__all__ = ["Refused", "granted", "group_names", "identity_of", "user_name"]

ALL: Final = "*"
"""The text of a scope that is everything; `Scopes.parse` knows it, too."""

MAX_GROUPS: Final = 1000
"""A user in more groups than that is treated as one in no group."""


class Refused(Exception):
    """A token of the service is refused, or the user who shows it must not come in.

    The exception's text says why. It repeats nothing of the token.
    """


def user_name(value: Any) -> str:
    """The name that a service gives a user, checked to be fit for an owner. Raises `Refused`.

    A name that is not in Unicode's normal form C is refused rather than normalized: two users of
    the service whose names differ in form only would become one owner here.
    """
    if not isinstance(value, str):
        raise Refused("the user has no name that is a text")
    try:
        name = owner_name(value)
    except InvalidName as error:
        raise Refused(f"the user's name cannot be an owner's: {error}") from None
    if name != value:
        raise Refused("the user's name is not in Unicode's normal form C")
    return name


def group_names(value: Any) -> frozenset[str]:
    """The groups that a service says a user is in. Values that cannot name a group are left out."""
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or len(value) > MAX_GROUPS:
        return frozenset()
    names = set()
    for text in value:
        try:
            names.add(user_name(text))
        except Refused:
            continue
    return frozenset(names)


def identity_of(owner: str, name: Any) -> Identity:
    """The identity of an owner. ``name`` is shown if it is fit for a name, and else the owner's."""
    try:
        shown = user_name(name)
    except Refused:
        shown = owner
    return Identity(username=owner, name=shown, display_name=shown)


def granted(texts: Iterable[str], default: Scopes) -> Scopes:
    """The scopes among these texts; the default ones if there is no text at all.

    A text that is no scope permits nothing, and still counts as a text: the default is not used.
    """
    given = list(texts)
    if not given:
        return default
    scopes = []
    for text in given:
        try:
            scopes += [] if text == ALL else [Scope.parse(text)]
        except InvalidScope:
            continue
    return Scopes(scopes, everything=ALL in given)
