"""What one replica at a time does, and what it has made by that, in the registry.

A claim is a row that a replica writes before it begins. Another that wants to do the same finds the
row: it waits until the first is done, and has what that has made. The claims of a replica that dies
before it is done are free.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from typing import Final, NamedTuple, Protocol
from uuid import uuid4

from ..errors import IdempotencyConflict
from ..handover.store import StoreAway
from .database import Connection
from .errors import RegistryUnavailable
from .reservations import Asks, NotJoined
from .store import tell

__all__ = ["KEY_SECONDS", "MAX_CLAIMS", "Claim", "SharedClaims", "claim", "settle"]

logger = logging.getLogger(__name__)

KEY_SECONDS: Final = 24 * 3600
"""How long it is remembered what was made."""

MAX_CLAIMS: Final = 10_000
"""How many claims are remembered; the oldest of the owner with the most is forgotten first."""

CATCH_UP_SECONDS: Final = 4.0
"""How long a replica may take to hear what others have stored before it has claimed something."""

PAUSES: Final = (0.02, 0.05, 0.1, 0.25)
"""Seconds until a replica looks again for a claim that another has; the last from then on."""


class Claim(NamedTuple):
    """Something to be done once for an owner."""

    name: bytes
    owner: str
    request: bytes
    attempt: str

    @classmethod
    def of(cls, owner: str, purpose: str, key: str, request: bytes = b"") -> Claim:
        """A new claim of what an owner calls ``key``, for a ``request`` with this digest."""
        words = (word.encode("utf-8", "surrogatepass") for word in (owner, purpose, key))
        name = sha256(b"".join(sha256(word).digest() for word in words)).digest()
        return cls(name, owner, request, uuid4().hex)


class Found(NamedTuple):
    """The claim that there is already; ``made`` is None while its replica is at work."""

    request: bytes
    made: str | None


def claim(connection: Connection, replica_id: str, wanted: Claim) -> Found | None:
    """Claim what nobody has; else what there is.

    When this is settled, one way or the other, the name of the attempt is told as a mark: whoever
    has heard it (`Directory.expect`) knows all that was stored before. Raises `NotJoined`.
    """
    execute = connection.execute
    if not execute("SELECT 1 FROM kernelkeep.replica WHERE id = %s", (replica_id,)).fetchone():
        raise NotJoined
    _forget_old(connection)
    claimed = execute(
        # A replica that died has left its claim without a replica. The same attempt comes again
        # when its answer was lost with the connection.
        "INSERT INTO kernelkeep.idempotency AS known (name, owner, request, attempt, replica) "
        "VALUES (%s, %s, %s, %s, %s) ON CONFLICT (name) DO UPDATE SET "
        "request = excluded.request, attempt = excluded.attempt, replica = excluded.replica, "
        "noted = clock_timestamp() "
        "WHERE known.made IS NULL AND known.replica IS NULL OR known.attempt = excluded.attempt "
        "RETURNING 1",
        (*wanted, replica_id),
    ).fetchone()
    if claimed is not None:
        tell(connection, "mark", [wanted.attempt])
        return None
    row = execute(
        "SELECT request, made FROM kernelkeep.idempotency WHERE name = %s", (wanted.name,)
    ).fetchone()
    # It may have been given up between the two statements: then it is looked for again.
    found = Found(wanted.request, None) if row is None else Found(*row)
    if found.made is not None:
        tell(connection, "mark", [wanted.attempt])
    return found


def _forget_old(connection: Connection) -> None:
    execute = connection.execute
    execute(
        "DELETE FROM kernelkeep.idempotency WHERE noted < clock_timestamp() "
        "- make_interval(secs => %s) AND (made IS NOT NULL OR replica IS NULL)",
        (KEY_SECONDS,),
    )
    (count,) = execute("SELECT count(*) FROM kernelkeep.idempotency").fetchone() or (0,)
    if count >= MAX_CLAIMS:
        execute(
            "DELETE FROM kernelkeep.idempotency WHERE name = (SELECT name "
            "FROM kernelkeep.idempotency WHERE made IS NOT NULL AND owner = (SELECT owner "
            "FROM kernelkeep.idempotency GROUP BY owner ORDER BY count(*) DESC, owner LIMIT 1) "
            "ORDER BY noted LIMIT 1)"
        )


def settle(connection: Connection, done: dict[Claim, str | None]) -> None:
    """Note what was made by claims; those by which nothing was made are given up."""
    for one, made in done.items():
        if made is None:
            statement = "DELETE FROM kernelkeep.idempotency WHERE name = %s AND attempt = %s"
            connection.execute(statement, (one.name, one.attempt))
        else:
            connection.execute(
                "UPDATE kernelkeep.idempotency SET made = %s, replica = NULL "
                "WHERE name = %s AND attempt = %s",
                (made, one.name, one.attempt),
            )


class Marks(Protocol):
    """Tells when what others have stored is known here."""

    def expect(self, mark: str) -> asyncio.Future[None]:
        """As `Directory.expect`."""


class SharedClaims:
    """The claims of one replica. ``known`` is what it knows of the others.

    While the registry ``is_away`` it is not asked: what waits for it would only become more.
    """

    def __init__(
        self, replica_id: str, ask: Asks, known: Marks, is_away: Callable[[], bool]
    ) -> None:
        self._replica = replica_id
        self._is_away = is_away
        self._ask = ask
        self._known = known
        self._done: dict[Claim, str | None] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def once(
        self,
        owner: str,
        purpose: str,
        key: str,
        request: bytes,
        make: Callable[[], Awaitable[str]],
        *,
        is_vital: bool,
    ) -> str:
        """The id of what ``make`` makes, or has made for whoever has claimed this before.

        If another replica is at it, this waits for that one. Raises `IdempotencyConflict` if the
        request was another one there. While the registry is away this raises `RegistryUnavailable`
        if the claim ``is_vital``, and otherwise calls ``make``.
        """
        wanted = Claim.of(owner, purpose, key, request)
        try:
            made = await self._claim(wanted, is_vital=is_vital)
        except RegistryUnavailable:
            if is_vital:
                raise
            return await make()
        if made is not None:
            return made
        try:
            made = await make()
        finally:
            await self._settle(wanted, made)
        return made

    @asynccontextmanager
    async def turn(self, owner: str, purpose: str, key: str) -> AsyncIterator[None]:
        """Do something that one replica at a time does. Raises `RegistryUnavailable`."""
        wanted = Claim.of(owner, purpose, key)
        await self._claim(wanted)
        try:
            yield
        finally:
            await self._settle(wanted, None)

    async def _claim(self, wanted: Claim, *, is_vital: bool = True) -> str | None:
        """What was made by an earlier claim; None if this replica is to make it.

        What others have stored before is known here then, if that ``is_vital`` or nothing was made.
        """
        if self._is_away():
            raise RegistryUnavailable
        marked = self._known.expect(wanted.attempt)
        try:
            made = await self._first(wanted)
            await asyncio.wait({marked}, timeout=CATCH_UP_SECONDS)
            if made is not None and not is_vital:
                return made  # what it has made is another replica's, which is asked for that
            if not marked.done():
                raise RegistryUnavailable
        except BaseException as error:
            if not isinstance(error, IdempotencyConflict):
                self._done[wanted] = None  # an answer may be lost, and the claim there
            raise
        finally:
            marked.cancel()
        return made

    async def _first(self, wanted: Claim) -> str | None:
        looks = 0
        while True:
            try:
                found: Found | None = await self._ask(
                    partial(claim, replica_id=self._replica, wanted=wanted)
                )
            except (NotJoined, StoreAway):
                raise RegistryUnavailable from None
            if found is None:
                return None
            if found.request != wanted.request:
                raise IdempotencyConflict("Idempotency-Key: it was used for another request")
            if found.made is not None:
                return found.made
            # There is no bound: whoever has the claim is at work, settles it, or is declared dead.
            await asyncio.sleep(PAUSES[min(looks, len(PAUSES) - 1)])
            looks += 1

    async def _settle(self, wanted: Claim, made: str | None) -> None:
        self._done[wanted] = made
        # A task of its own: a client that goes away must not leave a claim that nobody is at.
        task = asyncio.get_running_loop().create_task(self.clear(), name="settle claims")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task})

    async def clear(self) -> None:
        """Settle the claims that are done; what fails is tried again by the next call."""
        done, self._done = self._done, {}
        if not done:
            return
        try:
            await self._ask(partial(settle, done=done))
        except StoreAway as error:
            logger.debug("claims are not settled: %s", error)
            self._done = done | self._done
