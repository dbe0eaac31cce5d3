"""Claims in the registry: each lets one replica do a thing, and tells the others the result.

A claim is a row that a replica writes before it begins. Another that wants to do the same finds the
row: it waits until the first is done, and has what that has made. The claims of a replica that dies
before it is done are free: whoever finds one looks first whether that replica had made the thing
(`Claim.new_id`).
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
"""How long it is remembered what was made, as `app.api.idempotency.KEY_SECONDS`."""

MAX_CLAIMS: Final = 10_000
"""How many claims are remembered; the oldest of the owner with the most is forgotten first."""

CATCH_UP_SECONDS: Final = 4.0
"""How long a replica may take to hear what others have stored before it has claimed something."""

WAIT_SECONDS: Final = 300.0
"""How long a request may wait for another replica that has the same claim."""

PAUSES: Final = (0.02, 0.05, 0.1, 0.25)
"""Seconds until a replica looks again for a claim that another has; the last from then on."""


LEFT: Final = ""
"""The result of a claim whose replica cannot tell it: the next replica has to look for it."""


class Claim(NamedTuple):
    """Something to be done once for an owner. The ``attempt`` is a new UUID."""

    name: bytes
    owner: str
    request: bytes
    attempt: str

    @classmethod
    def of(cls, owner: str, purpose: str, key: str, request: bytes = b"") -> Claim:
        """A new claim of what an owner calls ``key``, for a ``request`` with this digest."""
        words = (word.encode("utf-8", "surrogatepass") for word in (owner, purpose, key))
        name = sha256(b"".join(sha256(word).digest() for word in words)).digest()
        return cls(name, owner, request, str(uuid4()))

    def new_id(self, *, is_vital: bool) -> str:
        """The id of what is made: that of the attempt, or one that follows from key and request.

        Whoever has a kernel knows its executions by the registry and the end of its log. So it
        finds one by the key alone, also where no row tells of the attempt, or the registry is away.
        """
        if is_vital:
            return self.attempt
        return str(UUID(bytes=sha256(self.name + self.request).digest()[:16], version=4))


class Found(NamedTuple):
    """An earlier claim of the same thing.

    ``made`` is None while its replica is at work. If that has died, ``left`` is the attempt.
    """

    request: bytes
    made: str | None = None
    left: str | None = None


def claim(
    connection: Connection, replica_id: str, wanted: Claim, instead: str | None = None
) -> Found | None:
    """Claim what nobody has; else what there is.

    What a replica has left that has died is claimed only ``instead`` of its attempt, which has made
    nothing. When this is settled, one way or the other, or left, the name of the attempt is told as
    a mark: whoever has heard it (`Directory.expect`) knows all that was stored before. Raises
    `NotJoined`.
    """
    execute = connection.execute
    if not execute("SELECT 1 FROM kernelkeep.replica WHERE id = %s", (replica_id,)).fetchone():
        raise NotJoined
    _forget_old(connection)
    # Two replicas that insert the same name wait for each other at the index: the second finds the
    # row of the first when that is committed, and updates it only where nobody is at work.
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
    # Between the two statements, each of which sees what was committed before it, the row may have
    # been given up: an answer that says neither made nor left has the caller claim once more.
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
    # Not exact: replicas that count at the same time may remove the same one. What is at work is
    # never removed, however much of that there is.
    (count,) = execute("SELECT count(*) FROM kernelkeep.idempotency").fetchone() or (0,)
    if count >= MAX_CLAIMS:
        execute(
            "DELETE FROM kernelkeep.idempotency WHERE name = (SELECT name "
            "FROM kernelkeep.idempotency WHERE made IS NOT NULL AND owner = (SELECT owner "
            "FROM kernelkeep.idempotency GROUP BY owner ORDER BY count(*) DESC, owner LIMIT 1) "
            "ORDER BY noted LIMIT 1)"
        )


def settle(connection: Connection, replica_id: str, done: dict[Claim, str | None]) -> None:
    """Note what was made by claims; those by which nothing was made are given up.

    Those that are `LEFT` are found as those of a replica that has died. A replica that was declared
    dead meanwhile has none: others may look for what it had made.
    """
    for one, made in done.items():
        # Each statement names attempt and replica: a claim that was freed meanwhile, as this
        # replica was declared dead, is left to whoever looks for the attempt, or has claimed
        # instead.
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
    """Note what a replica had made that has died."""
    connection.execute(
        "UPDATE kernelkeep.idempotency SET made = %s "
        "WHERE name = %s AND attempt = %s AND made IS NULL AND replica IS NULL",
        (made, name, attempt),
    )


Find = Callable[[str], str | None]
"""The id of what was made under an id that is given; None if nothing was."""


Confirm = Callable[[str], Awaitable[None]]
"""Returns when it is certain that what was made is stored. Raises a `KernelkeepError` if not."""


class Open(NamedTuple):
    """A claim by which something was made that may not be stored."""

    claim: Claim
    made: str
    confirm: Confirm


class Marks(Protocol):
    """Tells when this replica knows what the others have stored."""

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
        """The id of what ``make`` makes, or has made for whoever has claimed this before.

        ``make`` is called with the id that it is to have, a UUID, and ``find`` with the id of what
        may have been made before, as by a replica that has died. What is made, and cannot be
        confirmed, may be known to the next replica or not: the claim stays as it is, and when it is
        asked for again, whoever has it confirms it, or finds it. If another replica is at it, this
        waits for that one. Raises `IdempotencyConflict` if the request was another one there, and
        `RequestUnderway` if that takes too long. While the registry is away this raises
        `RegistryUnavailable`; if it is known to be away, and the claim is not ``is_vital``, this
        calls ``make`` instead.
        """
        # Two requests of one key at this replica never get here at the same time: the second waits
        # for the first before (`api.idempotency`). Through other replicas they meet at the row.
        wanted = Claim.of(owner, purpose, key, request)
        if (left := self._open.get(wanted.name)) is not None:
            if left.claim.request != request:
                raise IdempotencyConflict("Idempotency-Key: it was used for another request")
            if find(left.made) is not None:
                return await self._confirm(left)
            await self._drop(left, None)  # the kernel was another's meanwhile
        if self._is_away() and not is_vital:
            return await self._unclaimed(wanted, make, find, confirm, undo)
        # From here on the claim may be there although its answer is lost: what is made without it
        # would not be found by it.
        made = await self._claim(wanted, find, is_vital=is_vital)
        if made is not None:
            return made
        try:
            # A replica that had the kernel may have made it without a claim, have told nobody, and
            # have been declared dead.
            new_id = wanted.new_id(is_vital=is_vital)
            made = None if is_vital else find(new_id)
            if made is None:
                made = await make(new_id)
        except BaseException:
            await self._settle(wanted, None)
            raise
        # No await between the making and this entry: a caller that is cancelled from here on leaves
        # a claim that `confirm` settles, and not one that seems to be at work for ever.
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
        """Make something while the registry is away; what would have to be stored is undone.

        It may be stored all the same, by a write whose answer is late, and the replica that takes
        the kernel has it then. The other way round, an earlier one may have made it with a claim
        that cannot be read now.
        """
        new_id = wanted.new_id(is_vital=False)
        made = find(new_id)
        is_new = made is None
        if made is None:
            made = await make(new_id)
        try:
            await confirm(made)
        except BaseException:
            if is_new:  # otherwise whoever asked first may know that it is there
                await undo(made)
            raise
        await self._settle(wanted, made)
        return made

    async def _confirm(self, left: Open) -> str:
        """Settle a claim when what it has made is stored. Raises what ``confirm`` does.

        What is not here any more can be confirmed by no one here: the claim is left, and whoever
        has the kernel finds what was made, if that was stored.
        """
        try:
            await left.confirm(left.made)
        except (ExecutionNotFound, KernelNotFound, ReplicaUnreachable):
            await self._drop(left, LEFT)
            raise
        await self._drop(left, left.made)
        return left.made

    async def _drop(self, left: Open, made: str | None) -> None:
        """Settle a claim that was open, unless that was done."""
        # A client that asks again and the renewal of the lease (`confirm`) may confirm the same
        # claim at the same time: whichever comes first settles, and both are told the same.
        if self._open.get(left.claim.name) is left:
            del self._open[left.claim.name]
            await self._settle(left.claim, made)

    async def confirm(self) -> None:
        """Settle the claims whose making could not be confirmed before, and can now."""
        left = [self._confirm(one) for one in self._open.values()]
        for found in await asyncio.gather(*left, return_exceptions=True):
            if isinstance(found, Exception) and not isinstance(found, KernelkeepError):
                logger.error("a claim could not be settled", exc_info=found)

    @asynccontextmanager
    async def turn(self, owner: str, purpose: str, key: str) -> AsyncIterator[None]:
        """Do something that one replica at a time does.

        Raises `RegistryUnavailable` and `RequestUnderway`.
        """
        wanted = Claim.of(owner, purpose, key)
        await self._claim(wanted, lambda _: None)
        try:
            yield
        finally:
            await self._settle(wanted, None)

    async def _claim(self, wanted: Claim, find: Find, *, is_vital: bool = True) -> str | None:
        """What was made by an earlier claim; None if this replica is to make it.

        What others have stored before is known here then, if that ``is_vital`` or nothing was made.
        """
        if self._is_away():
            raise RegistryUnavailable
        deadline = asyncio.get_running_loop().time() + WAIT_SECONDS
        nothing_by: str | None = None
        try:
            while True:
                # Before the claim tells the mark. When the mark is heard, `find` and what is made
                # know all that others had stored before: what a dead replica has made by its
                # attempt is found, or is not there, and can never be stored (its row is gone). The
                # mark of an earlier turn of this loop does as well: that replica was dead by then.
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
            # An answer may be lost, or come behind the caller's end, and the claim be there:
            # `clear` gives it up behind whatever is still under way in the thread.
            if not isinstance(error, IdempotencyConflict | RequestUnderway):
                self._done[wanted] = None
            raise

    async def _look_for(self, wanted: Claim, found: Found, find: Find, *, is_vital: bool) -> None:
        """Note what a replica had made that has died, if it had."""
        assert found.left is not None
        left = wanted._replace(request=found.request, attempt=found.left)
        made = find(left.new_id(is_vital=is_vital))
        if made is not None:
            work = partial(settle_left, name=wanted.name, attempt=found.left, made=made)
            await self._run(work)

    async def _first(self, wanted: Claim, instead: str | None, deadline: float) -> Found | None:
        """What was made, or left; None if this replica has the claim."""
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
            # Whoever has the claim is at work, and settles it, or is declared dead. It is asked for
            # again and not told: what is made takes seconds, and a mark for each would wake all.
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
        # A task of its own: a client that goes away must not leave a claim that nobody is at.
        task = asyncio.get_running_loop().create_task(self.clear(), name="settle claims")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        await asyncio.wait({task})

    async def clear(self) -> None:
        """Settle the claims that are done; what fails is tried again by the next call."""
        # Taken before the await: what is done meanwhile is the next call's. Calls that overlap do
        # no harm, as the thread works in order, and each has claims of its own.
        done, self._done = self._done, {}
        if not done:
            return
        try:
            await self._ask(partial(settle, replica_id=self._replica, done=done))
        except StoreAway as error:
            logger.debug("claims are not settled: %s", error)
            self._done = done | self._done  # of a claim that is in both the newer counts
