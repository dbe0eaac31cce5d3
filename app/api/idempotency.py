"""Requests that are sent twice and done once: the store behind the `Idempotency-Key` header."""

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
    """A key that was used: for what, and what came of it."""

    __slots__ = ("digest", "done", "made", "since")

    def __init__(self, digest: bytes) -> None:
        self.digest = digest
        self.since = time.monotonic()
        self.made: str | None = None
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class IdempotencyKeys:
    """Remembers which object each key has made, by its id."""

    def __init__(self) -> None:
        self._uses: dict[tuple[str, str], _Use] = {}  # oldest first

    async def once(
        self, scope: str, key: str | None, request: bytes, make: Callable[[], Awaitable[str]]
    ) -> str:
        """The id of what ``make`` makes, or has made for an earlier request with this key.

        ``scope`` is what is made. A request that fails leaves nothing, and the next one with its
        key tries anew; one that comes while it is under way waits for it. Raises
        `InvalidIdempotencyKey`, or `IdempotencyConflict` for another ``request`` with the key.
        """
        if key is None:
            return await make()
        if not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
            raise InvalidIdempotencyKey(
                f"Idempotency-Key: must be 1 to {MAX_KEY_LENGTH} printable ASCII characters"
            )
        digest = sha256(request).digest()
        self._expire()
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
