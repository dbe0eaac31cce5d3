"""Claims in the registry: each lets one replica make an object, and tells the others its id.

The object is what a client has asked for with an ``Idempotency-Key``, such as a kernel or an
execution; a claim without an object is a lock (`SharedClaims.turn`). A claim is a row that a
replica writes before it begins. Another replica that gets the same request finds the row, waits
until the first is done, and answers with the id of the object that the first has made. When a
replica dies before it is done, its claims are left: the next replica that finds one looks first
whether the dead replica had made the object (`Claim.new_id`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from hashlib import sha256
from typing import Any, Final, NamedTuple, Protocol
from uuid import UUID, uuid4

from ..errors import ExecutionNotFound, IdempotencyConflict, KernelkeepError, KernelNotFound
from ..handover.store import StoreAway
from .database import Connection
from .errors import RegistryUnavailable, ReplicaUnreachable, RequestUnderway
from .reservations import Asks, NotJoined
from .store import tell

__all__ = ["KEY_SECONDS", "MAX_CLAIMS", "Claim", "SharedClaims", "claim", "settle"]

logger = logging.getLogger(__name__)

KEY_SECONDS: Final = 24 * 3600
"""How long a claim is remembered, with the id that was made: `app.api.idempotency.KEY_SECONDS`."""

MAX_CLAIMS: Final = 10_000
"""How many claims are remembered; the oldest of the owner with the most is forgotten first."""

CATCH_UP_SECONDS: Final = 4.0
"""How long a replica that has a claim may take to hear what others had stored before the claim."""

WAIT_SECONDS: Final = 300.0
"""How long a request may wait for another replica that has the same claim."""

PAUSES: Final = (0.02, 0.05, 0.1, 0.25)
"""Pauses in seconds between looks at a claim that another replica has; the last one repeats."""


LEFT: Final = ""
"""Given for the id of the object: this replica cannot tell it, and the next has to look for it."""


class Claim(NamedTuple):
    """What one replica is to make, for an owner, once.

    ``name`` is a digest of owner, purpose and key, ``request`` one of the request's body.
    ``attempt`` is a new UUID for each try.
    """

    name: bytes
    owner: str
    request: bytes
    attempt: str

    @classmethod
    def of(cls, owner: str, purpose: str, key: str, request: bytes = b"") -> Claim:
        """A new claim for an owner's ``key``. ``request`` is a digest of the request's body."""
        words = (word.encode("utf-8", "surrogatepass") for word in (owner, purpose, key))
        name = sha256(b"".join(sha256(word).digest() for word in words)).digest()
        return cls(name, owner, request, str(uuid4()))

    def new_id(self, *, is_vital: bool) -> str:
        """The id of the object to be made: the attempt's, or one that follows from key and request.

        The latter is for executions: the replica that has a kernel knows the kernel's executions by
        the registry and the end of the log. So it finds the execution of a request that comes
        again even where no row tells of the attempt, or while the registry is away.
        """
        if is_vital:
            return self.attempt
        return str(UUID(bytes=sha256(self.name + self.request).digest()[:16], version=4))


class Found(NamedTuple):
    """An earlier claim of the same name.

    ``made`` is the id of the object, or None while there is none. ``left`` is the attempt of the
    claim if its replica has died, or has left the claim (`LEFT`), before ``made`` was noted.
    """

    request: bytes
    made: str | None = None
    left: str | None = None


def claim(
    connection: Connection, replica_id: str, wanted: Claim, instead: str | None = None
) -> Found | None:
    """Claim a name for a replica; returns None, or the claim that there is already.

    A claim that a dead replica has left is replaced only if ``instead`` is its attempt: the caller
    then knows that the attempt has made nothing. Unless another replica is at work, the wanted
    attempt is told to all replicas as a mark: a replica that has heard it (`Directory.expect`)
    knows all that was stored before. Raises `NotJoined`.
    """
    execute = connection.execute
    if not execute("SELECT 1 FROM kernelkeep.replica WHERE id = %s", (replica_id,)).fetchone():
        raise NotJoined
    _forget_old(connection)
    # Two replicas that insert the same name wait for each other at the index: the second finds the
    # row of the first when that is committed, and updates it only where no replica is at work.
    claimed = execute(
        # The same attempt comes again when its answer was lost with the connection.
        "INSERT INTO kernelkeep.idempotency AS known (name, owner, request, attempt, replica) "
        "VALUES (%s, %s, %s, %s, %s) ON CONFLICT (name) DO UPDATE SET "
        "request = excluded.request, attempt = excluded.attempt, replica = excluded.replica, "
        "noted = clock_timestamp() "
        "WHERE known.made IS NULL AND known.replica IS NULL AND known.attempt = %s "
        "OR known.attempt = excluded.attempt RETURNING 1",
        (*wanted, replica_id, instead),
    ).fetchone()
    if claimed is not None:
        tell(connection, "mark", [wanted.attempt])
        return None
    row = execute(
        "SELECT request, made, CASE WHEN made IS NULL AND replica IS NULL THEN attempt END "
        "FROM kernelkeep.idempotency WHERE name = %s",
        (wanted.name,),
    ).fetchone()
    # Each of the two statements sees what was committed before it, so the row may have been deleted
    # between them. A `Found` that is neither made nor left has the caller claim once more.
    found = Found(wanted.request) if row is None else Found(*row)
    if found.made is not None or found.left is not None:
        tell(connection, "mark", [wanted.attempt])
    return found


def _forget_old(connection: Connection) -> None:
    execute = connection.execute
    execute(
        "DELETE FROM kernelkeep.idempotency WHERE noted < clock_timestamp() "
        "- make_interval(secs => %s) AND (made IS NOT NULL OR replica IS NULL)",
        (KEY_SECONDS,),
    )
    # Not exact: replicas that count at the same time may delete the same row. Claims at which a
    # replica is at work are never deleted, however many there are.
    (count,) = execute("SELECT count(*) FROM kernelkeep.idempotency").fetchone() or (0,)
    if count >= MAX_CLAIMS:
        execute(
            "DELETE FROM kernelkeep.idempotency WHERE name = (SELECT name "
            "FROM kernelkeep.idempotency WHERE made IS NOT NULL AND owner = (SELECT owner "
            "FROM kernelkeep.idempotency GROUP BY owner ORDER BY count(*) DESC, owner LIMIT 1) "
            "ORDER BY noted LIMIT 1)"
        )


def settle(connection: Connection, replica_id: str, done: dict[Claim, str | None]) -> None:
    """Store the ids of the objects that claims have made; delete claims for which the id is None.

    A claim whose id is `LEFT` becomes like one of a dead replica: the next replica looks for the
    object. Of a replica that was declared dead meanwhile no claim is changed.
    """
    for one, made in done.items():
        # Each statement names attempt and replica. If this replica was declared dead meanwhile, its
        # claims are free, and another replica looks for the attempt or has a claim in its place:
        # such a row must not change.
        if made == LEFT:
            connection.execute(
                "UPDATE kernelkeep.idempotency SET replica = NULL "
                "WHERE name = %s AND attempt = %s AND replica = %s AND made IS NULL",
                (one.name, one.attempt, replica_id),
            )
        elif made is None:
            connection.execute(
                "DELETE FROM kernelkeep.idempotency "
                "WHERE name = %s AND attempt = %s AND replica = %s",
                (one.name, one.attempt, replica_id),
            )
        else:
            connection.execute(
                # An insertion, as there was no claim while the registry was away (`_unclaimed`).
                "INSERT INTO kernelkeep.idempotency AS known (name, owner, request, attempt, made) "
                "SELECT %s, %s, %s, %s, %s "
                "WHERE EXISTS (SELECT 1 FROM kernelkeep.replica WHERE id = %s) "
                "ON CONFLICT (name) DO UPDATE SET made = excluded.made, replica = NULL "
                "WHERE known.attempt = excluded.attempt AND known.replica = %s",
                (*one, made, replica_id, replica_id),
            )


def settle_left(connection: Connection, name: bytes, attempt: str, made: str) -> None:
    """Store the id ``made`` of the object that a dead replica's ``attempt`` had made."""
    connection.execute(
        "UPDATE kernelkeep.idempotency SET made = %s "
        "WHERE name = %s AND attempt = %s AND made IS NULL AND replica IS NULL",
        (made, name, attempt),
    )


Find = Callable[[str], str | None]
"""Called with the id that an object was to have; returns the object's id, or None if none is there.
"""


Confirm = Callable[[str], Awaitable[None]]
"""Called with an object's id; returns when the object is stored for certain. Raises a
`KernelkeepError` if it is not."""


class Open(NamedTuple):
    """A claim whose object, with the id ``made``, exists here and may not be stored yet."""

    claim: Claim
    made: str
    confirm: Confirm


class Marks(Protocol):
    """Tells when this replica has heard of all that others had stored before a mark."""

    def expect(self, mark: str) -> asyncio.Future[None]:
        """As `Directory.expect`."""


class SharedClaims:
    """The claims of one replica. ``known`` tells when it has heard of the other replicas' writes.

    While the registry ``is_away`` it is not asked, or ever more requests would wait for it.
    """

    def __init__(
        self, replica_id: str, ask: Asks, known: Marks, is_away: Callable[[], bool]
    ) -> None:
        self._replica = replica_id
        self._is_away = is_away
        self._ask = ask
        self._known = known
        self._done: dict[Claim, str | None] = {}  # what is still to be settled
        self._open: dict[bytes, Open] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def once(
        self,
        owner: str,
        purpose: str,
        key: str,
        request: bytes,
        make: Callable[[str], Awaitable[str]],
        find: Find,
        confirm: Confirm,
        undo: Confirm,
        *,
        is_vital: bool,
    ) -> str:
        """The id of the object that ``make`` makes, or that an earlier request has made.

        ``make`` is called with the id, a UUID, that the object is to have; ``find`` with the id of
        an object that may have been made before, as by a replica that has died. While another
        replica makes the object, this waits for that one. If ``confirm`` fails, the next replica
        may know the object or not: its claim stays open, and the next request with this key
        confirms the object, or finds it. Raises what ``make`` and ``confirm`` raise,
        `IdempotencyConflict` if the earlier request was another one, and `RequestUnderway` if the
        other replica takes too long. While the registry is away this raises `RegistryUnavailable`;
        but if it is known to be away, and the claim is not ``is_vital``, it calls ``make`` without
        a claim.
        """
        # Two requests with one key at this replica never get here at the same time: the second
        # waits for the first (`api.idempotency`). At two replicas they meet at the claim's row.
        wanted = Claim.of(owner, purpose, key, request)
        if (left := self._open.get(wanted.name)) is not None:
            if left.claim.request != request:
                raise IdempotencyConflict("Idempotency-Key: it was used for another request")
            if find(left.made) is not None:
                return await self._confirm(left)
            await self._drop(left, None)  # another replica has had the kernel meanwhile
        if self._is_away() and not is_vital:
            return await self._unclaimed(wanted, make, find, confirm, undo)
        # From here on the row may be there although the registry's answer is lost. So nothing is
        # made without a claim any more: no later request would find it by the row.
        made = await self._claim(wanted, find, is_vital=is_vital)
        if made is not None:
            return made
        try:
            # A replica that had the kernel before may have made the execution without a claim
            # (`_unclaimed`), and have been declared dead before it could settle.
            new_id = wanted.new_id(is_vital=is_vital)
            made = None if is_vital else find(new_id)
            if made is None:
                made = await make(new_id)
        except BaseException:
            await self._settle(wanted, None)
            raise
        # No await between the end of `make` and this entry: a caller that is cancelled from here on
        # leaves a claim that `confirm` settles. Without the entry the claim would seem to have a
        # replica at work for ever.
        self._open[wanted.name] = left = Open(wanted, made, confirm)
        if len(self._open) > MAX_CLAIMS:
            await self._drop(next(iter(self._open.values())), LEFT)
        return await self._confirm(left)

    async def _unclaimed(
        self,
        wanted: Claim,
        make: Callable[[str], Awaitable[str]],
        find: Find,
        confirm: Confirm,
        undo: Confirm,
    ) -> str:
        """Make an object while the registry is away; it is undone if it cannot be confirmed.

        It may be stored all the same, by a write whose answer is late: then the replica that takes
        the kernel next has it. An earlier request may have made the object with a claim that cannot
        be read now: ``find`` is asked first.
        """
        new_id = wanted.new_id(is_vital=False)
        made = find(new_id)
        is_new = made is None
        if made is None:
            made = await make(new_id)
        try:
            await confirm(made)
        except BaseException:
            if is_new:  # otherwise the client of the earlier request may know its id
                await undo(made)
            raise
        await self._settle(wanted, made)
        return made

    async def _confirm(self, left: Open) -> str:
        """Settle a claim when its object is stored; returns the object's id.

        If the object is not at this replica any more, the claim is left (`LEFT`): the replica that
        has the kernel finds the object, if it was stored. Raises what ``confirm`` raises.
        """
        try:
            await left.confirm(left.made)
        except (ExecutionNotFound, KernelNotFound, ReplicaUnreachable):
            await self._drop(left, LEFT)
            raise
        await self._drop(left, left.made)
        return left.made

    async def _drop(self, left: Open, made: str | None) -> None:
        """Settle an open claim, unless it was settled meanwhile."""
        # A client's second request and the renewal of the lease (`confirm`) may confirm the same
        # claim at the same time: the first to come here settles it, and both get the same id.
        if self._open.get(left.claim.name) is left:
            del self._open[left.claim.name]
            await self._settle(left.claim, made)

    async def confirm(self) -> None:
        """Settle the open claims whose objects can be confirmed now."""
        left = [self._confirm(one) for one in self._open.values()]
        for found in await asyncio.gather(*left, return_exceptions=True):
            if isinstance(found, Exception) and not isinstance(found, KernelkeepError):
                logger.error("a claim could not be settled", exc_info=found)

    @asynccontextmanager
    async def turn(self, owner: str, purpose: str, key: str) -> AsyncIterator[None]:
        """A block that one replica at a time runs for the same owner, purpose and key.

        Raises `RegistryUnavailable`, and `RequestUnderway` if another replica takes too long.
        """
        wanted = Claim.of(owner, purpose, key)
        await self._claim(wanted, lambda _: None)
        try:
            yield
        finally:
            await self._settle(wanted, None)

    async def _claim(self, wanted: Claim, find: Find, *, is_vital: bool = True) -> str | None:
        """The id that an earlier claim has made; None if this replica has the claim now.

        In the second case, and also in the first if the claim ``is_vital``, this replica has by
        then heard of all that others had stored before.
        """
        if self._is_away():
            raise RegistryUnavailable
        deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
        nothing_by: str | None = None
        try:
            while True:
                # Before `claim` tells the mark. When the mark is heard, `find` and `make` see all
                # that others had stored before: the object of a dead replica's attempt is found
                # now, or was not stored and never can be (that replica's row is gone). The mark of
                # an earlier turn of this loop does as well: that replica was dead by then.
                marked = self._known.expect(wanted.attempt)
                try:
                    found = await self._first(wanted, nothing_by, deadline)
                    if found is None or is_vital:
                        await asyncio.wait({marked}, timeout=CATCH_UP_SECONDS)
                        if not marked.done():
                            raise RegistryUnavailable
                finally:
                    marked.cancel()
                if found is None or found.made is not None:
                    return None if found is None else found.made
                await self._look_for(wanted, found, find, is_vital=is_vital)
                nothing_by = found.left
        except BaseException as error:
            # The row may be there although the registry's answer was lost, or came after the caller
            # was cancelled: `clear` deletes it, after the statement that the thread is still at.
            if not isinstance(error, IdempotencyConflict | RequestUnderway):
                self._done[wanted] = None
            raise

    async def _look_for(self, wanted: Claim, found: Found, find: Find, *, is_vital: bool) -> None:
        """Look for the object of a dead replica's claim; store its id if the object is there."""
        assert found.left is not None
        left = wanted._replace(request=found.request, attempt=found.left)
        made = find(left.new_id(is_vital=is_vital))
        if made is not None:
            work = partial(settle_left, name=wanted.name, attempt=found.left, made=made)
            await self._run(work)

    async def _first(self, wanted: Claim, instead: str | None, deadline: float) -> Found | None:
        """An earlier claim that has made something or is left; None if this replica has the claim.

        Waits while another replica is at work, until the ``deadline`` (seconds, the loop's clock).
        Raises `IdempotencyConflict` and `RequestUnderway`.
        """
        loop, looks = asyncio.get_running_loop(), 0
        while True:
            found: Found | None = await self._run(
                partial(claim, replica_id=self._replica, wanted=wanted, instead=instead)
            )
            if found is None:
                return None
            if found.request != wanted.request and found.left is None:
                raise IdempotencyConflict("Idempotency-Key: it was used for another request")
            if found.made is not None or found.left not in (None, instead):
                return found
            # The replica that has the claim is at work: it settles the claim, or is declared dead.
            # This one looks again, and is not notified: an object takes seconds to make, and a
            # notification for each would wake all replicas.
            if loop.time() >= deadline:
                raise RequestUnderway
            await asyncio.sleep(PAUSES[min(looks, len(PAUSES) - 1)])
            looks += 1

    async def _run(self, work: Callable[[Connection], Any]) -> Any:
        try:
            return await self._ask(work)
        except (NotJoined, StoreAway):
            raise RegistryUnavailable from None

    async def _settle(self, wanted: Claim, made: str | None) -> None:
        self._done[wanted] = made
        # A task of its own: a client that goes away cancels the caller, and the claim would stay.
        task = asyncio.get_running_loop().create_task(self.clear(), name="settle claims")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task})

    async def clear(self) -> None:
        """Settle the claims that are done; what fails is tried again by the next call."""
        # Taken before the await: claims that are done meanwhile are the next call's. Calls that
        # overlap do no harm: the thread works in order, and each call has claims of its own.
        done, self._done = self._done, {}
        if not done:
            return
        try:
            await self._ask(partial(settle, replica_id=self._replica, done=done))
        except StoreAway as error:
            logger.debug("claims are not settled: %s", error)
            self._done = done | self._done  # the newer value counts of a claim that is in both
