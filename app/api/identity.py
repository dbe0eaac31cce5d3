"""Who uses the service: one user, whoever has the token."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

__all__ = ["UPDATABLE_FIELDS", "Identity", "User"]

UPDATABLE_FIELDS: Final = ("name", "display_name", "initials", "avatar_url", "color")
"""What of an identity its user may change; the defaults of Jupyter's identity provider."""


class Identity(msgspec.Struct, frozen=True):
    """The identity model of Jupyter's REST API."""

    username: str = "anonymous"
    name: str = "Anonymous"
    display_name: str = "Anonymous"
    initials: str | None = None
    avatar_url: str | None = None
    color: str | None = None


class User:
    """The user of this server. What is changed lasts as long as the server runs.

    Jupyter servers keep changes in a login cookie; here there are no cookies, and one token means
    one user.
    """

    def __init__(self) -> None:
        self.identity = Identity()

    def update(self, changes: Mapping[str, str | None]) -> None:
        """Change some of `UPDATABLE_FIELDS`."""
        assert set(changes) <= set(UPDATABLE_FIELDS)
        self.identity = msgspec.structs.replace(self.identity, **changes)
