"""The principals that a provider knows from memory, by the token that was shown."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Generic, TypeVar
from weakref import WeakValueDictionary

from ..managers.owners.principal import Principal

__all__ = ["MAX_REMEMBERED", "Remembered", "Told", "digest_of"]

MAX_REMEMBERED: Final = 10_000
"""How many principals, and how many wrong tokens, are remembered; the longest unused go first."""


class Told(Principal):
    """A principal whom another service has told. Whoever has something open holds a reference."""

    __slots__ = ("__weakref__",)


def digest_of(token: str) -> bytes:
    """What a token is remembered by, so that no memory is full of tokens."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


P = TypeVar("P", bound=Told)


class Remembered(Generic[P]):
    """Principals by digest: those used last, and all that somebody has something open for.

    An open WebSocket holds its principal, so a principal that is forgotten as one of those used
    last is still found here until the last of its connections is closed: it can be ended.
    """

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._limit = limit
        self._recent: OrderedDict[bytes, P] = OrderedDict()
        self._alive: WeakValueDictionary[bytes, P] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._alive)

    def get(self, digest: bytes) -> P | None:
        """The principal, if there is one that has not been ended."""
        found = self._alive.get(digest)
        if found is not None and digest in self._recent:
            self._recent.move_to_end(digest)
        return found

    def put(self, digest: bytes, principal: P) -> None:
        """Remember a principal as the one that was used last."""
        self._alive[digest] = principal
        self._recent[digest] = principal
        self._recent.move_to_end(digest)
        if len(self._recent) > self._limit:
            self._recent.popitem(last=False)

    def release(self, digest: bytes) -> None:
        """Remember a principal only for as long as somebody has something open for it."""
        self._recent.pop(digest, None)

    def end(self, digest: bytes) -> None:
        """Forget a principal; what it has open is closed."""
        self._recent.pop(digest, None)
        found = self._alive.pop(digest, None)
        if found is not None:
            found.ended.set()

    def items(self) -> Iterator[tuple[bytes, P]]:
        """All that are known, as of now."""
        return iter(list(self._alive.items()))
