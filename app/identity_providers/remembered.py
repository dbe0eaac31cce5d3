"""The principals that a provider knows from memory, by the token that was shown."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Generic, TypeVar

from ..managers.owners.principal import Principal

__all__ = ["MAX_REMEMBERED", "Remembered", "digest_of"]

MAX_REMEMBERED: Final = 10_000
"""How many principals, and how many wrong tokens, are remembered; the longest unused go first."""

P = TypeVar("P", bound=Principal)


def digest_of(token: str) -> bytes:
    """The digest by which a token is remembered, so that tokens are not kept in memory."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


class Remembered(Generic[P]):
    """Principals by the digest of their token: the last ``limit`` that were used, and others.

    The others are those with open requests or connections. They are remembered until these are
    closed, for the principal may have to be ended; so the number of connections bounds them.
    """

    def __init__(self, limit: int = MAX_REMEMBERED) -> None:
        self._limit = limit
        self._recent: OrderedDict[bytes, P] = OrderedDict()
        self._open: dict[bytes, P] = {}

    def __len__(self) -> int:
        return len(self._recent) + len(self._open)

    def get(self, digest: bytes) -> P | None:
        """The principal of a token, if it is remembered; its `over` may be true."""
        found = self._recent.get(digest)
        if found is None:
            return self._open.get(digest)
        self._recent.move_to_end(digest)
        return found

    def over(self, digest: bytes) -> P | None:
        """The principal of a token that was good once and is not any more; None if unknown."""
        found = self.get(digest)
        return found if found is not None and found.over else None

    def put(self, digest: bytes, principal: P) -> None:
        """Remember a principal as the one that was used last."""
        self._open.pop(digest, None)
        self._recent[digest] = principal
        self._recent.move_to_end(digest)
        if len(self._recent) > self._limit:
            self.release(next(iter(self._recent)))

    def release(self, digest: bytes) -> None:
        """Remember a principal only for as long as it has something open."""
        principal = self._recent.pop(digest, None) or self._open.pop(digest, None)
        if principal is not None and principal.is_open:
            self._open[digest] = principal

    def end(self, digest: bytes) -> None:
        """End a principal: its open requests and connections are closed.

        The principal stays remembered, so that a client that goes on showing its token does not
        count as one that guesses tokens.
        """
        # `Principal.end` calls functions that neither wait nor raise. So no other task runs while
        # the principal is in neither dict.
        principal = self._recent.pop(digest, None) or self._open.pop(digest, None)
        if principal is not None:
            principal.end()
            self.put(digest, principal)

    def forget_closed(self) -> None:
        """Forget principals that were remembered for their connections, and have none any more."""
        for digest in [*self._open]:
            self.release(digest)

    def items(self) -> Iterator[tuple[bytes, P]]:
        """All principals that are remembered now, with their digests."""
        # A copy: callers end and release principals while they go through it.
        return iter([*self._recent.items(), *self._open.items()])
