"""Principals: who asks, as an identity provider has told."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Set
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .names import owner_name
from .scopes import Scopes

__all__ = ["ANONYMOUS", "Identity", "Principal"]

ANONYMOUS = "anonymous"
"""The owner of everything on a server that has one token; Jupyter servers call it so."""


class Identity(msgspec.Struct, frozen=True):
    """Who the user is."""

    username: Annotated[str, Meta(description="It does not change.")] = ANONYMOUS
    name: str = "Anonymous"
    display_name: str = "Anonymous"
    initials: str | None = None
    avatar_url: str | None = None
    color: str | None = None


class Principal:
    """Who makes a request: an owner's name, with the scopes of the credential that was shown.

    The owner's name is the identity's, in the form that `owner_name` gives it; so are the groups'.
    Raises `InvalidName`. Two credentials of one owner are two principals. ``expires`` is in seconds
    since the epoch; None: the credential does not expire by itself. ``credential`` tells people
    which one was shown, and cannot be used as one: a token's prefix, or the name of the provider.
    """

    __slots__ = (
        *("credential", "ended", "expires", "groups", "identity", "owner", "scopes"),
        "views",
    )

    def __init__(
        self,
        identity: Identity,
        scopes: Scopes,
        *,
        groups: Set[str] = frozenset(),
        credential: str = "",
        expires: float | None = None,
    ) -> None:
        self.owner = owner_name(identity.username)
        self.identity = identity
        self.scopes = scopes
        self.groups = frozenset(map(owner_name, groups))
        self.credential = credential
        self.expires = expires
        self.views: tuple[object, Mapping[str, Any]] | None = None
        """What the principal finds of a server, made once (`app.api.views`), and by whom."""
        self.ended: asyncio.Event = asyncio.Event()
        """Set when the credential has expired or been revoked: open connections are closed then."""
