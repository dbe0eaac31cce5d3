"""The keepers that dial in to several replicas: which of them may, and which replica has each.

The invitations that a single server has in files of its state directory are in the registry here,
so that a keeper may dial any replica. The row of a keeper is locked while its secret is checked, so
that a secret works once among all replicas. A replica that was stopped, and believes that a kernel
is still its own, can neither invite a keeper for that kernel nor forget one: both go with the
kernel's term.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final, TypeVar

from ..errors import KeeperUnavailable
from ..handover.store import StoreAway
from ..processes.engines.work import kernel_of
from ..processes.hosts.authority import Credential
from ..processes.hosts.invitations import (
    FORGOTTEN,
    Invited,
    Refused,
    check_keeper_id,
    digest,
    new_secret,
    unknown,
)
from ..threads import DaemonThreads
from .database import Connection, Database
from .directory import Directory
from .lease import Standing
from .member import Member, bounded
from .terms import Terms

__all__ = ["SharedKeepers"]

T = TypeVar("T")

MAX_KNOWN: Final = 4096
"""For how many keepers a replica remembers which replica has invited them, and which it let in."""

_SERVICE: Final = "service"

_ANOTHERS: Final = "another replica has the kernel"


class SharedKeepers:
    """The invitations and the name that several replicas share, as one of them has access to them.

    An implementation of `Replicas` (`hosts/joining.py`) and of `Service`. Make it inside a running
    event loop, and `close` it there.
    """

    is_alone = False
    """As `Service.is_alone`."""

    authority: bytes | None = None
    """As `Replicas.authority`."""

    def __init__(self, url: str, member: Member, terms: Terms, directory: Directory) -> None:
        self._database = Database(url)
        self._thread = DaemonThreads(1, "keepers")
        self._member = member
        self._id = member.replica.id
        self._terms = terms
        self._directory = directory
        self._name = ""
        self._inviters: dict[str, str] = {}
        self._let_in: dict[str, int] = {}  # generations of the keepers that stay at this replica
        self._late: set[str] = set()  # keepers that could not be forgotten yet

    @property
    def on_change(self) -> Callable[[], None]:
        """Called when a replica or a kernel may have changed."""
        return self._directory.on_change

    @on_change.setter
    def on_change(self, callback: Callable[[], None]) -> None:
        self._directory.on_change = callback

    @property
    def addresses(self) -> Sequence[str]:
        """As `Replicas.addresses`."""
        return [each for agents in self._directory.agents.values() for each in agents]

    def having(self, keeper_id: str) -> Sequence[str]:
        """As `Replicas.having`."""
        kernel = self._directory.kernels.get(kernel_of(keeper_id))
        # A kernel that is being started has no row yet: then the replica that has invited the
        # keeper counts. The directory may be a moment old, and the keeper be sent to a replica that
        # has the kernel no more: it comes back and says that it was there (`Guest.away`), and waits
        # here until this replica has heard which one has the kernel now.
        whose = self._inviters.get(keeper_id) if kernel is None else kernel.replica
        if whose is None or whose == self._id:
            return ()
        agents = self._directory.agents
        # An address that other replicas have, too, such as a load balancer's, may lead to any.
        common = {each for replica in agents.keys() - {whose} for each in agents[replica]}
        return [each for each in agents.get(whose, ()) if each not in common]

    # Invitations

    async def invite(self, keeper_id: str, seconds: float) -> tuple[Credential, str]:
        """As `Book.invite`. Raises `OSError`, too, if the kernel is not this replica's any more."""
        check_keeper_id(keeper_id)
        secret = new_secret()
        who = keeper_id, kernel_of(keeper_id), self._id
        # From now on the keeper is not to be forgotten any more: a `_run` that comes after this
        # invitation would forget the new keeper as well.
        was_late = keeper_id in self._late
        self._late.discard(keeper_id)
        term = self._terms.of(kernel_of(keeper_id))
        what = *who, term, digest(secret), seconds
        try:
            generation = await self._run(lambda one: _invite(one, *what))
        except OSError:
            if was_late:  # the keeper before is still to be forgotten
                self._late.add(keeper_id)
            raise
        if generation is None:
            raise OSError("the kernel is not this replica's any more")
        self._know(keeper_id, self._id)
        return Credential(keeper_id, generation), secret

    async def join(self, keeper_id: str, secret: str, nonce: str) -> Credential:
        """As `Book.join`."""
        shown = partial(_join, keeper_id=keeper_id, secret=secret, nonce=nonce)
        generation, inviter = await self._run(shown)
        self._know(keeper_id, inviter)
        return Credential(keeper_id, generation)

    async def check(self, credential: Credential) -> None:
        """As `Book.check`; while the registry is away, `_let_in` decides."""
        keeper_id, generation = credential
        try:
            inviter = await self._run(lambda one: _check(one, keeper_id, generation))
        except OSError:
            # The keeper's certificate is good, and this replica has let this generation in before.
            # If it still has the kernel, no other replica can have invited a later generation: an
            # invitation needs the registry, and the kernel's term.
            if self._let_in.get(keeper_id) == generation:
                return
            raise
        self._know(keeper_id, inviter)
        self._let_in.pop(keeper_id, None)
        if not self.having(keeper_id):
            self._let_in[keeper_id] = generation
            _bound(self._let_in)

    def _know(self, keeper_id: str, inviter: str) -> None:
        self._inviters.pop(keeper_id, None)
        self._inviters[keeper_id] = inviter
        _bound(self._inviters)

    async def forget(self, keeper_id: str) -> None:
        """As `Book.forget`; if the registry is away, the next `_run` makes up for it."""
        self._let_in.pop(keeper_id, None)
        self._late.add(keeper_id)
        await self._run(lambda _: None)

    async def _run(self, work: Callable[[Connection], T]) -> T:
        """Forget keepers that could not be forgotten before, then do ``work``, in one transaction.

        Raises `OSError` if the registry is away.
        """
        # A copy as of now: the thread runs later. An invitation that is asked for meanwhile takes
        # its keeper out of `_late`, and the thread does it after this.
        late = {*self._late}

        def both(connection: Connection) -> T:
            for keeper_id in late:
                _forget(connection, keeper_id, self._id, self._terms.of(kernel_of(keeper_id)))
            return work(connection)

        try:
            done = await bounded(self._thread, self._database, lambda: self._database.run(both))
        except StoreAway as error:
            raise OSError(f"the registry is away: {error}") from None
        self._late -= late
        return done

    # The service

    async def name(self) -> str:
        """As `Service.name`."""
        if not self._name:
            try:
                self._name = await self._run(_name)
            except OSError as error:
                raise KeeperUnavailable(f"The service has no name yet: {error}") from None
        return self._name

    async def check_own(self, kernel_id: str) -> None:
        """As `Service.check_own`. Once its lease has ended, this replica asks the registry.

        A kernel without a row has no owner among the replicas: each of them may end what is left of
        it.
        """
        # The lease may end before the engine has done what the caller asks of it next. Then the job
        # of a kernel is ended that another replica has just taken over, and the kernel gets its
        # next process there. That next job is safe: a job is ended by its own name, which has the
        # generation of its keeper.
        term = self._terms.of(kernel_id)
        if term and self._member.standing is Standing.GOOD:
            return
        try:
            is_own = await self._run(lambda one: _may_have(one, kernel_id, self._id, term))
        except OSError as error:
            raise KeeperUnavailable(f"Whose kernel {kernel_id} is: {error}") from None
        if not is_own:
            raise KeeperUnavailable(f"Kernel {kernel_id}: {_ANOTHERS}")

    async def generations(self, keeper_ids: Collection[str]) -> Mapping[str, int]:
        """As `Service.generations`."""
        asked = [*keeper_ids]
        try:
            return await self._run(lambda one: _generations(one, asked))
        except OSError as error:
            raise KeeperUnavailable(f"Jobs of other replicas are not known: {error}") from None

    async def close(self) -> None:
        """Close the connection to the registry."""
        await asyncio.to_thread(self._database.close)
        self._thread.shutdown()


def _bound(known: dict[str, T]) -> None:
    if len(known) > MAX_KNOWN:
        del known[next(iter(known))]


def _may_have(connection: Connection, kernel_id: str, replica: str, term: int) -> bool:
    """Whether a replica has a kernel in this term, or the kernel has no row.

    A row that is found stays as it is to the end of the transaction.
    """
    found = connection.execute(
        "SELECT replica, term FROM kernelkeep.kernel WHERE id = %s FOR SHARE", (kernel_id,)
    ).fetchone()
    return found in (None, (replica, term))


def _invite(
    connection: Connection,
    keeper_id: str,
    kernel_id: str,
    replica: str,
    term: int,
    secret: str,
    seconds: float,
) -> int | None:
    """Store an invitation; returns its generation, or None if the kernel is not this replica's."""
    # A replica that was declared dead has no row: it cannot bring back an invitation that another
    # replica has deleted.
    alive = connection.execute(
        "SELECT 1 FROM kernelkeep.replica WHERE id = %s FOR SHARE", (replica,)
    ).fetchone()
    if not (alive and term and _may_have(connection, kernel_id, replica, term)):
        return None
    row = connection.execute(
        "INSERT INTO kernelkeep.invitation AS old "
        "(keeper_id, kernel_id, replica, generation, secret, expires) VALUES (%s, %s, %s, "
        # An id that was forgotten, and comes again, begins with a generation that was not there.
        "extract(epoch FROM clock_timestamp())::bigint, %s, "
        "clock_timestamp() + make_interval(secs => %s)) "
        "ON CONFLICT (keeper_id) DO UPDATE SET generation = old.generation + 1, "
        "replica = excluded.replica, secret = excluded.secret, expires = excluded.expires, "
        "nonce = '', has_joined = false RETURNING generation",
        (keeper_id, kernel_id, replica, secret, seconds),
    ).fetchone()
    assert row is not None
    return int(row[0])


def _read(connection: Connection, keeper_id: str) -> tuple[Invited, bool, str] | None:
    """A keeper's invitation, whether its secret has expired, and which replica has invited it."""
    row = connection.execute(
        "SELECT generation, secret, nonce, has_joined, expires <= clock_timestamp(), replica "
        # Two that show the same secret wait for each other here: the second finds it shown.
        "FROM kernelkeep.invitation WHERE keeper_id = %s FOR UPDATE",
        (keeper_id,),
    ).fetchone()
    if row is None:
        return None
    generation, secret, nonce, has_joined, is_over, inviter = row
    invited = Invited(
        keeper_id=keeper_id,
        generation=generation,
        secret=secret,
        nonce=nonce,
        has_joined=has_joined,
    )
    return invited, is_over, inviter


def _write(connection: Connection, invited: Invited) -> None:
    connection.execute(
        "UPDATE kernelkeep.invitation SET nonce = %s, has_joined = %s WHERE keeper_id = %s",
        (invited.nonce, invited.has_joined, invited.keeper_id),
    )


def _join(connection: Connection, keeper_id: str, secret: str, nonce: str) -> tuple[int, str]:
    """The generation of a keeper that shows its secret, and the id of the replica that invited it.

    Raises `Refused`.
    """
    found = _read(connection, keeper_id)
    if found is None:
        raise unknown(secret)
    invited, is_over, inviter = found
    if invited.shows(secret, nonce, is_over=is_over):
        _write(connection, invited)
    return invited.generation, inviter


def _check(connection: Connection, keeper_id: str, generation: int) -> str:
    """The id of the replica that has invited a keeper, which shows its certificate.

    Raises `Refused` if the keeper is not invited any more, or a later generation is.
    """
    found = _read(connection, keeper_id)
    if found is None:
        raise Refused(*FORGOTTEN, ends=True)
    invited, _, inviter = found
    if invited.comes(generation):
        _write(connection, invited)
    return inviter


def _forget(connection: Connection, keeper_id: str, replica: str, term: int) -> None:
    # IS DISTINCT FROM, as a kernel that no replica has (NULL) is not this replica's either: the
    # replica that takes the kernel needs its keeper.
    connection.execute(
        "DELETE FROM kernelkeep.invitation AS old WHERE keeper_id = %s AND NOT EXISTS ("
        "SELECT 1 FROM kernelkeep.kernel WHERE id = old.kernel_id "
        "AND (replica, term) IS DISTINCT FROM (%s, %s))",
        (keeper_id, replica, term),
    )


def _name(connection: Connection) -> str:
    connection.execute(
        "INSERT INTO kernelkeep.secrets (name, value) VALUES (%s, %s) ON CONFLICT DO NOTHING",
        (_SERVICE, secrets.token_hex(8).encode()),
    )
    row = connection.execute(
        "SELECT value FROM kernelkeep.secrets WHERE name = %s", (_SERVICE,)
    ).fetchone()
    assert row is not None
    return bytes(row[0]).decode()


def _generations(connection: Connection, keeper_ids: list[str]) -> dict[str, int]:
    """The generations of keepers whose kernels are stored, or may be about to be."""
    # A job is submitted behind the invitation of its keeper. So no job in an engine's list, which
    # is older than this look, is a stranger while its kernel or its replica lives.
    rows = connection.execute(
        "SELECT keeper_id, generation FROM kernelkeep.invitation AS one "
        "WHERE keeper_id = ANY(%s) "
        "AND (EXISTS (SELECT 1 FROM kernelkeep.kernel WHERE id = one.kernel_id) "
        "OR EXISTS (SELECT 1 FROM kernelkeep.replica WHERE id = one.replica))",
        (keeper_ids,),
    )
    return dict(rows.fetchall())
