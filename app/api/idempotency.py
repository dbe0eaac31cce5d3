"""The store behind the `Idempotency-Key` header: requests that are sent twice are done once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import TYPE_CHECKING, Final, NamedTuple

from ..managers.errors import IdempotencyConflict, InvalidIdempotencyKey

if TYPE_CHECKING:
    from ..managers.replicas.claims import SharedClaims

__all__ = ["KERNELS", "KEY_SECONDS", "MAX_KEYS", "IdempotencyKeys", "Making", "OwnersKeys"]

KERNELS: Final = "kernels"
"""The scope of keys of starts. A client may send the same start to any of several replicas, so
these keys must be in the registry that they share.

A request to one kernel is always answered by the replica that has the kernel. So that replica's
memory suffices for its keys while the registry is away.
"""

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


def _nothing(_: str) -> str | None:
    return None


async def _at_once(_: str) -> None:
    """Do nothing: the default of `Making.confirm` and `Making.undo`."""


class Making(NamedTuple):
    """How an object (a kernel, an execution, ...) is made once.

    ``make`` gets a UUID that is to be the object's id, or "" if there is no key or no shared
    registry; it returns the id. ``find`` gets such a UUID, and returns the id of the object that an
    earlier ``make`` with it has made, perhaps in a replica that has died; None if there is none.
    ``confirm`` returns when the object with this id is known to be stored, and raises if it may not
    be stored. Then ``undo`` removes the object, unless a client can ask for it again by its key.
    While the shared registry is away, no key is stored there, and ``undo`` is called even if the
    request has a key.
    """

    make: Callable[[str], Awaitable[str]]
    find: Callable[[str], str | None] = _nothing
    confirm: Callable[[str], Awaitable[None]] = _at_once
    undo: Callable[[str], Awaitable[None]] = _at_once


Uses = dict[tuple[str, str], _Use]
"""The uses of one owner, oldest first, by scope and key."""


class IdempotencyKeys:
    """Remembers the id of the object that was made for each key. Each owner has keys of its own.

    With ``claims``, the keys are in the registry that several replicas share.
    """

    def __init__(self, claims: SharedClaims | None = None) -> None:
        self.claims = claims
        self._by_owner: dict[str, Uses] = {}
        self._count = 0

    def of(self, owner: str) -> OwnersKeys:
        """The keys of one owner."""
        return OwnersKeys(self, owner)

    def uses(self, owner: str) -> Uses:
        """The uses that an owner has made of keys; without those that are too old."""
        uses = self._by_owner.get(owner, {})
        too_old = time.monotonic() - KEY_SECONDS
        while uses and next(iter(uses.values())).since < too_old:
            self.forget(owner, next(iter(uses)))
        return uses

    def note(self, owner: str, name: tuple[str, str], use: _Use) -> None:
        """Remember a use. Of too many, the oldest of the owner with the most is forgotten.

        So an owner who uses many keys has others forget none.
        """
        # The use that is forgotten may be of a request that is under way: so `_make` looks whether
        # its own use is still there. If the request then came a second time, it would be done
        # twice; but no owner has so many requests under way.
        if self._count >= MAX_KEYS:
            most = max(self._by_owner, key=lambda one: len(self._by_owner[one]))
            self.forget(most, next(iter(self._by_owner[most])))
        self._by_owner.setdefault(owner, {})[name] = use
        self._count += 1

    def forget(self, owner: str, name: tuple[str, str]) -> None:
        """Forget a use."""
        uses = self._by_owner[owner]
        del uses[name]
        self._count -= 1
        if not uses:
            del self._by_owner[owner]


class OwnersKeys:
    """The idempotency keys of one owner."""

    def __init__(self, keys: IdempotencyKeys, owner: str) -> None:
        self._keys = keys
        self._owner = owner

    async def once(self, scope: str, key: str | None, request: bytes, how: Making) -> str:
        """The id of the object that is made, or that an earlier request has made.

        An earlier request counts if it had the same ``key`` and ``scope`` (the kind of object, and
        where). If it failed, this one makes it anew. Raises `InvalidIdempotencyKey`, and
        `IdempotencyConflict` if the earlier ``request`` was another one.
        """
        if key is None:
            made = await how.make("")
            try:
                await how.confirm(made)
            except BaseException:
                await how.undo(made)
                raise
            return made
        if not (0 < len(key) <= MAX_KEY_LENGTH and key.isascii() and key.isprintable()):
            raise InvalidIdempotencyKey(
                f"Idempotency-Key: must be 1 to {MAX_KEY_LENGTH} printable ASCII characters"
            )
        digest = sha256(request).digest()
        # A request with the key of one that is under way waits for it, and then looks again. If the
        # first one failed, only one of those that waited begins anew: from the look that finds no
        # use until `_make` has noted its own nothing awaits, so the others find that one.
        while (use := self._keys.uses(self._owner).get((scope, key))) is not None:
            if use.digest != digest:
                raise IdempotencyConflict("Idempotency-Key: it was used for another request")
            if use.made is not None:
                return use.made
            await asyncio.wait({use.done})
        return await self._make(scope, key, digest, how)

    async def _make(self, scope: str, key: str, digest: bytes, how: Making) -> str:
        name = scope, key
        use = _Use(digest)
        self._keys.note(self._owner, name, use)
        claims = self._keys.claims
        try:
            if claims is None:
                made = await how.make("")
                try:
                    await how.confirm(made)
                finally:  # the object exists: the same request gets it, and makes no second one
                    use.made = made
            else:
                is_vital = scope == KERNELS
                asked = (self._owner, scope, key, digest, *how)
                use.made = await claims.once(*asked, is_vital=is_vital)
            return use.made
        finally:
            # Also if the request was cancelled. The failed use is forgotten before the requests
            # that wait for it are woken: they find the use of another request, or begin their own.
            if use.made is None and self._keys.uses(self._owner).get(name) is use:
                self._keys.forget(self._owner, name)
            use.done.set_result(None)
