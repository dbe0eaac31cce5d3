"""Principals: who makes a request, as an identity provider has told."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Set
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
    since the epoch; None: the credential does not expire by itself. ``credential`` names for people
    the credential that was shown, by a token's prefix or the provider's name; it is no secret.
    """

    __slots__ = (
        *("_open", "credential", "ended", "expires", "groups", "identity", "owner", "scopes"),
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
        """The maker of the principal's views of a server, and these views (`app.api.views`)."""
        self.ended = False
        """Whether the credential has expired or been revoked; see `end`."""
        self._open: set[Callable[[], None]] = set()

    @property
    def over(self) -> bool:
        """Whether the credential has expired or been revoked by now."""
        return self.ended or (self.expires is not None and self.expires <= time.time())

    @property
    def is_open(self) -> bool:
        """Whether a request or a connection of this principal is under way."""
        return bool(self._open)

    def end(self) -> None:
        """End the credential: requests and connections that are open with it are closed."""
        # The flag is set first, and the set of callbacks is taken out. So a connection that opens
        # or closes while they are called finds the principal ended, and changes another set.
        self.ended = True
        closing, self._open = self._open, set()
        for close in closing:
            close()

    def opened(self, close: Callable[[], None]) -> None:
        """Note a request or a connection that is under way; ``close`` is called at the `end`.

        ``close`` neither waits nor raises. A principal that has ended already closes at once.
        """
        if self.ended:
            close()
        else:
            self._open.add(close)

    def closed(self, close: Callable[[], None]) -> None:
        """Forget a request or a connection that has come to its own end."""
        self._open.discard(close)
