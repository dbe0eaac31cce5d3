"""Identity providers for tests."""

from __future__ import annotations

import json
from collections.abc import Iterable, Set

from app.managers.owners.principal import Identity, Principal
from app.managers.owners.scopes import Scopes

__all__ = ["Mute", "Telling", "TokenTable", "principal", "token"]


def principal(
    name: str,
    scopes: Iterable[str] = ("*",),
    *,
    groups: Set[str] = frozenset(),
    expires: float | None = None,
) -> Principal:
    """A principal of an owner with this name."""
    identity = Identity(username=name, name=name, display_name=name)
    return Principal(
        identity, Scopes.parse(scopes), groups=groups, credential=f"of {name}", expires=expires
    )


class TokenTable:
    """An identity provider that is given its tokens.

    Those of ``remembered`` it knows at once, those of ``asked`` only when it is asked.
    """

    def __init__(
        self,
        remembered: dict[str, Principal] | None = None,
        asked: dict[str, Principal] | None = None,
    ) -> None:
        self.remembered = remembered or {}
        self.asked = asked or {}
        self.questions: list[str] = []
        self.closed = False
        self.error: Exception | None = None

    def known(self, token: str) -> Principal | None:
        return self.remembered.get(token)

    async def identify(self, token: str) -> Principal | None:
        self.questions.append(token)
        if self.error is not None:
            raise self.error
        return self.remembered.get(token) or self.asked.get(token)

    async def close(self) -> None:
        self.closed = True


def token(
    name: str, scopes: Iterable[str] = ("*",), *, groups: Iterable[str] = (), number: int = 1
) -> str:
    """A token of which `Telling` says that it is the owner ``name``'s."""
    told = {"name": name, "scopes": [*scopes], "groups": [*groups], "number": number}
    return f"telling-{json.dumps(told).encode().hex()}"


class Telling:
    """An identity provider for servers in tests: each token tells whose it is."""

    def __init__(self) -> None:
        self._known: dict[str, Principal] = {}

    def known(self, token: str) -> Principal | None:
        return self._known.get(token)

    async def identify(self, token: str) -> Principal | None:
        if token.startswith("telling-") and token not in self._known:
            told = json.loads(bytes.fromhex(token.removeprefix("telling-")))
            self._known[token] = principal(
                told["name"], told["scopes"], groups=frozenset(told["groups"])
            )
        return self._known.get(token)

    async def close(self) -> None:
        self._known.clear()


class Mute:
    """A class that is no identity provider."""
