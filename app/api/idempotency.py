"""The store behind the `Idempotency-Key` header: requests that are sent twice are done once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Final

from ..managers.errors import IdempotencyConflict, InvalidIdempotencyKey

__all__ = ["KEY_SECONDS", "MAX_KEYS", "IdempotencyKeys"]

KEY_SECONDS: Final = 24 * 3600.0
"""How long a key is remembered."""

MAX_KEYS: Final = 10_000
"""How many keys are remembered; the oldest is forgotten first."""

MAX_KEY_LENGTH: Final = 255


class _Use:
    """The use of a key: the digest of its request, and the id of the object that it has made."""

    __slots__ = ("digest", "done", "made", "since")

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.since = time.monotonic()
        self.made: str | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class IdempotencyKeys:
    """Remembers the id of the object that each key has made."""

    def __init__(self) -> None:
        self._uses: dict[tuple[str, str], _Use] = {}  # oldest first

    async def once(
        self, scope: str, key: str | None, request: bytes, make: Callable[[], Awaitable[str]]
    ) -> str:
        """The id of the object that ``make`` makes, or has made for an earlier request.

        An earlier request counts if it had the same ``key`` and ``scope`` (the kind of object, and
        where). If it failed, this one calls ``make`` again. Raises `InvalidIdempotencyKey`, and
        `IdempotencyConflict` if the earlier ``request`` was another one.
        """
        if key is None:
            return await make()
        if not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
            raise InvalidIdempotencyKey(
                f"Idempotency-Key: must be 1 to {MAX_KEY_LENGTH} printable ASCII characters"
            )
        digest = sha256(request).digest()
        self._expire()
        # A request with the key of one that is under way waits for it, and then looks again. If the
        # first one failed, only one of those that waited begins anew: from the look that finds no
        # use until `_make` has noted its own nothing awaits, so the others find that one.
        while (use := self._uses.get((scope, key))) is not None:
            if use.digest != digest:
                raise IdempotencyConflict("Idempotency-Key: it was used for another request")
            if use.made is not None:
                return use.made
            await asyncio.wait({use.done})
        return await self._make(scope, key, digest, make)

    async def _make(
        self, scope: str, key: str, digest: bytes, make: Callable[[], Awaitable[str]]
    ) -> str:
        use = self._uses[scope, key] = _Use(digest)
        try:
            use.made = await make()
            return use.made
        finally:
            if use.made is None and self._uses.get((scope, key)) is use:
                del self._uses[scope, key]
            use.done.set_result(None)

    def _expire(self) -> None:
        too_old = time.monotonic() - KEY_SECONDS
        for name, use in tuple(self._uses.items()):
            if use.since >= too_old and len(self._uses) < MAX_KEYS:
                return
            del self._uses[name]
