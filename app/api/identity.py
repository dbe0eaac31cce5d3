"""The user of the service. There is one: every client that has the token is the same user."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

__all__ = ["UPDATABLE_FIELDS", "Identity", "User"]

UPDATABLE_FIELDS: Final = ("name", "display_name", "initials", "avatar_url", "color")
"""The fields of an identity that its user may change: the defaults of Jupyter's provider."""


class Identity(msgspec.Struct, frozen=True):
    """Who the user is."""

    username: Annotated[str, Meta(description="It does not change.")] = "anonymous"
    name: str = "Anonymous"
    display_name: str = "Anonymous"
    initials: str | None = None
    avatar_url: str | None = None
    color: str | None = None


class User:
    """The user of this server, with an identity that can be changed until the server ends.

    Jupyter servers store such changes in a login cookie; this server has no cookies.
    """

    def __init__(self) -> None:
        self.identity = Identity()

    def update(self, changes: Mapping[str, str | None]) -> None:
        """Change some of `UPDATABLE_FIELDS`."""
        assert set(changes) <= set(UPDATABLE_FIELDS)
        self.identity = msgspec.structs.replace(self.identity, **changes)
