"""The registry that this server shares with other replicas, as their member.

Kernels, executions, the places of clients, and sessions are in PostgreSQL. The keeper's sockets,
the logs and the connection files are on the disk of the kernels' host, in the state directory that
the replicas of that host share. So the replicas of a host take over each other's kernels; replicas
of other hosts forward requests for those kernels.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import socket
from collections.abc import Callable, Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from ... import __version__
from ...machine import network_file_system
from ...settings import Settings
from ..handover.lock import Lock
from ..handover.registry import CLOSE_SECONDS, Registry
from ..handover.store import (
    ExecutionRecord,
    KernelRecord,
    RegistryStore,
    StoreAway,
    UnusableRegistry,
)
from ..log.places import Places
from ..processes.hosts.options import PROVISIONER as SSH_PROVISIONER
from ..processes.hosts.provisioner import elsewhere
from .authority import shared_authority
from .claims import SharedClaims
from .counting import SharedCounting
from .database import Connection, Database, migrate
from .directory import Directory
from .errors import RegistryUnavailable, ReplicaUnreachable
from .keepers import SharedKeepers
from .lease import Lease
from .member import Member, bounded
from .membership import Replica, Taken, check
from .reservations import SharedReservations
from .store import SharedStore
from .terms import Terms
from .wire import NO_CRYPTOGRAPHY, Wire

__all__ = ["SharedRegistry", "check_shared_registry"]

logger = logging.getLogger(__name__)

DIRECTORY: Final = "replicas"
"""The directory in the state directory with the replicas' locks and sockets."""

READ_AGAIN_SECONDS: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses in seconds after which an adoption asks for the kernel's executions again. An adoption
without them would never run those that wait in the queue."""

_IDENTITY: Final = "identity"

DIAL: Final = "dial"
SSH: Final = "ssh"
"""How keepers on other hosts are reached: they dial in, or the server connects there by SSH."""


def check_shared_registry(settings: Settings) -> None:
    """Migrate the shared registry to this version, and check that this replica may join the others.

    Raises `UnusableRegistry` if it may not, or if the registry cannot be used.
    """
    network = network_file_system(settings.state_dir)
    if network is not None:
        raise UnusableRegistry(
            f"the state directory {settings.state_dir} is on a network file system ({network}), "
            "whose locks cannot be relied on"
        )
    database = Database(settings.registry_url.get_secret_value())
    lock = _NameLock(settings)
    wire: Wire | None = None
    try:
        migrate(database)
        wire = _wire(settings, lock.name, database)
        replica = _replica(settings, lock, "", wire)
        database.run(lambda connection: check(connection, replica, replaces=[lock.name]))
    except StoreAway as error:
        raise UnusableRegistry(f"the registry cannot be used: {error}") from None
    finally:
        if wire is not None:
            wire.close()
        lock.close()
        database.close()


def _wire(settings: Settings, name: str, database: Database) -> Wire | None:
    """Where replicas of other hosts dial this one, if they do.

    Raises `UnusableRegistry` and `StoreAway`, and blocks.
    """
    if not settings.replica_listen:
        return None
    try:
        authority = b"" if settings.replica_certificate else shared_authority(database)
    except ImportError:
        raise UnusableRegistry(NO_CRYPTOGRAPHY) from None
    return Wire(settings, name, settings.state_dir / DIRECTORY, authority)


class SharedRegistry(Registry):
    """This replica's hold on the shared registry.

    Make it by `open` inside a running event loop, and `close` it there. ``on_fenced`` is called
    with the id of a kernel of this replica that another replica is found to have taken.
    """

    has_models = True

    def __init__(self, settings: Settings, name_lock: _NameLock, wire: Wire | None) -> None:
        url = settings.registry_url.get_secret_value()
        self._lock = Lock(settings.state_dir, shared=True)
        self._name_lock = name_lock
        self.wire = wire
        self.state_dir = settings.state_dir
        self.host = name_lock.host
        """The identity of the state directory, and so of the keeper's host."""
        identity = secrets.token_hex(8)
        self.terms = Terms()
        self.lease = Lease(settings.lease_seconds)
        self.renew_seconds = self.lease.every
        self.on_fenced: Callable[[str], None] = lambda _: None
        replica = _replica(settings, name_lock, identity, wire)
        self._here = f"dir:{self.host}"
        self._reached = [self._here, SSH]
        self.member = Member(url, replica, self.lease, self.terms, self._reached)
        self.directory = Directory(url, self.member.wake)
        self.shared_keepers = SharedKeepers(url, self.member, self.terms, self.directory)
        """What the replicas share of keepers that dial in."""
        self._loop = asyncio.get_running_loop()
        # This connection has a thread of its own, and so have those of the member, the directory
        # and the keepers: leases are renewed, and keepers let in, however much there is to write.
        self._database = Database(url)
        self.reservations = SharedReservations(identity, self._ask, self._is_due)
        """The places for kernels that the replicas share."""
        self.counting = SharedCounting(identity, self._ask)
        """What the replicas count together of what owners use."""
        self.counts: Callable[[str], bool] = lambda _: False
        """Whether this replica has a kernel of this id that is not dead."""
        self.claims = SharedClaims(identity, self._ask, self.directory, lambda: self.member.is_away)
        """The claims of this replica."""
        self._shared_store = SharedStore(
            self._database, identity, self.terms, self._keeper_of, self._fence_later
        )
        # By kernel: what `mine` has read with the kernel's record, until the adoption asks for it.
        self._executions_found: dict[str, list[ExecutionRecord]] = {}
        self._places_found: dict[str, Places | None] = {}
        self._begin(self._shared_store)

    @classmethod
    async def open(cls, settings: Settings) -> SharedRegistry:
        """A registry of which this process is a member. Raises `UnusableRegistry`, `StoreAway`."""
        name_lock = _NameLock(settings)
        database = Database(settings.registry_url.get_secret_value())
        try:
            wire = await asyncio.to_thread(_wire, settings, name_lock.name, database)
        except BaseException:
            name_lock.close()
            raise
        finally:
            await asyncio.to_thread(database.close)
        registry = cls(settings, name_lock, wire)
        try:
            await registry.member.join(replaces=[registry.member.replica.name])
            await registry.directory.begin()
            if settings.agent_listen:
                read = partial(shared_authority, registry._database)
                registry.shared_keepers.authority = await registry._call(read)
        except BaseException:
            await registry.close()
            raise
        logger.info("this is replica %s", registry.member.replica.name)
        return registry

    def term_of(self, kernel_id: str) -> int:
        """As `Registry.term_of`."""
        return self.terms.of(kernel_id)

    def found(self, taken: Taken) -> None:
        """Have the adoption of a kernel that was just taken find what was read with its record.

        Only the first adoption: if that fails, the registry is asked when it is tried again.
        """
        if taken.executions is not None:
            self._executions_found[taken.record.id] = taken.executions
        self._places_found[taken.record.id] = taken.places

    def _drop_found(self, kernel_id: str) -> None:
        self._executions_found.pop(kernel_id, None)
        self._places_found.pop(kernel_id, None)

    async def executions(self, kernel_id: str) -> list[ExecutionRecord]:
        """As `Registry.executions`, but asks again, after pauses, while the registry is away."""
        found = self._executions_found.pop(kernel_id, None)
        if found is not None:
            return found
        for pause in READ_AGAIN_SECONDS:
            if kernel_id not in self.terms:  # another replica has taken the kernel
                break
            try:
                read: list[ExecutionRecord]
                read = await self._call(self._store.load_executions, kernel_id)
            except StoreAway:
                await asyncio.sleep(pause)
            else:
                return read
        return await super().executions(kernel_id)

    async def places(self, kernel_id: str) -> Places | None:
        """As `Registry.places`."""
        if kernel_id in self._places_found:
            return self._places_found.pop(kernel_id)
        return await super().places(kernel_id)

    async def delete(self, kernel_id: str) -> None:
        """As `Registry.delete`."""
        self._drop_found(kernel_id)  # it may be given up before it is adopted
        await super().delete(kernel_id)

    def check_start(self) -> None:
        """Raise `RegistryUnavailable` if a kernel that is started now could not be stored."""
        if self.member.is_away:
            raise RegistryUnavailable

    def has_saved(self, kernel_id: str) -> bool:
        """Whether a kernel is this replica's, and no write of its record has failed."""
        # If the registry has refused the write, the term is dropped by now: the thread calls
        # `_fence_later` before the write's result is passed to the loop, and the loop does both in
        # that order.
        return kernel_id in self.terms and kernel_id not in self._missed

    async def execution_stored(self, kernel_id: str, execution_id: str, term: int) -> None:
        """As `Registry.execution_stored`. Raises `RegistryUnavailable` and `ReplicaUnreachable`.

        The replica that takes the kernel next would not know an execution that is not stored,
        although the client was told that it will run.
        """
        if self.member.is_away:
            raise RegistryUnavailable
        # After the wait, the kernel may be another replica's. The execution may still be in
        # `_unwritten`: the write has failed, or takes too long, or a later flush is at it.
        await self.stored()
        if not term or self.terms.of(kernel_id) != term:
            # It may have been stored before the kernel was taken: then the replica that has taken
            # the kernel runs it.
            raise ReplicaUnreachable(begun=True)
        if (kernel_id, execution_id) in self._unwritten:
            raise RegistryUnavailable

    def listens(self, addresses: Sequence[str]) -> None:
        """Note where keepers dial this replica: it can take kernels whose keepers dial in."""
        self.member.agents = addresses
        self._reached.append(DIAL)

    def _keeper_of(self, record: KernelRecord) -> str:
        """How the keeper of a kernel is reached: a replica that has this way can take the kernel.

        That is the state directory's identity for a keeper of this host, `SSH` or `DIAL` for one of
        another host.
        """
        name = elsewhere(record.spec.get("metadata", {}))
        if not name:
            return self._here
        return SSH if name == SSH_PROVISIONER else DIAL

    def _fence_later(self, kernel_id: str, term: int) -> None:
        def fence() -> None:
            # The refused write may have been of an earlier term than this replica has now.
            if self.terms.of(kernel_id) == term:
                self.fence(kernel_id)

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(fence)

    @property
    def _present(self) -> RegistryStore:
        return self._shared_store.at(self.terms.now())

    def fence(self, kernel_id: str) -> None:
        """Give up this kernel, which another replica has taken."""
        # The term goes first: from now on keeper and registry refuse what this replica asks and
        # writes for the kernel. What a flush has given to the thread goes with the old term, and
        # the registry refuses that, too. Nothing is awaited here: `on_fenced` finds nothing left of
        # the time in which this replica had the kernel.
        self.terms.drop(kernel_id)
        self._newest.pop(kernel_id, None)
        self._missed.pop(kernel_id, None)
        # The kernel may come back in a later term, which must not find changes of this one.
        self._activity.pop(kernel_id, None)
        self._places.pop(kernel_id, None)
        self._drop_found(kernel_id)
        self._drop_executions(kernel_id)
        self.on_fenced(kernel_id)

    async def _call(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await bounded(self._thread, self._database, lambda: work(*arguments))

    async def _ask(self, work: Callable[[Connection], Any], /) -> Any:
        return await self._call(self._database.run, work)

    def _is_due(self, kernel_id: str) -> bool:
        """Whether a kernel is still to be stored or deleted (one in an engine's queue is, too)."""
        if kernel_id in self._missed:
            return True
        stored = self._newest.get(kernel_id)
        return self.counts(kernel_id) and (stored is None or stored.dead)

    async def _renew_once(self) -> None:
        await self._call(self._database.run, lambda connection: connection.execute("SELECT 1"))

    async def _make_up(self) -> None:
        await super()._make_up()
        self.counting.beat()
        await self.reservations.clear()
        await self.claims.clear()
        await self.claims.confirm()

    async def release(self, kernel_ids: Collection[str]) -> Collection[str]:
        """Write what waits, then free those of these kernels that are stored; returns their ids.

        The kernels have all been left (`Kernel.leave`). Raises `StoreAway`.
        """
        if not await self.stored(CLOSE_SECONDS):
            raise StoreAway("the database does not answer")
        # The replica that takes a kernel reads what is stored by then, and later writes of this one
        # are refused. So a kernel for which something is not stored yet is not freed here: the
        # write is tried again, in the end by `leave`, which then frees the kernel.
        missing = self._missed.keys() | {kernel_id for kernel_id, _ in self._unwritten}
        terms = {each: self.terms.of(each) for each in kernel_ids if each not in missing}
        await self.member.release(terms)
        return terms

    async def leave(self) -> None:
        """Write what waits, then leave the kernels to the others."""
        # First the writes, then the kernels are freed: the replica that takes a kernel needs what
        # is stored of it. Afterwards this replica has no terms, and the registry refuses writes
        # that still wait in the thread. Each statement has a bound, but there may be one for each
        # kernel that was not stored: so all together have a bound as well.
        with contextlib.suppress(StoreAway, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._make_up()
                await self._flush_all()
        await self.member.close()
        for kernel_id in self.terms:
            self.terms.drop(kernel_id)

    async def close(self) -> None:
        """Call `leave`, if that was not done before, and close all connections."""
        await self.counting.close()
        # If `leave` was called before (`Handover.hand_over_rest`), it finds nothing to do.
        await self.leave()
        try:
            await super().close()
        except StoreAway as error:
            logger.error("the registry could not be left in order: %s", error)
        await self.directory.close()
        await self.shared_keepers.close()
        if self.wire is not None:
            self.wire.close()
        self._name_lock.close()


def _replica(settings: Settings, lock: _NameLock, identity: str, wire: Wire | None) -> Replica:
    address = f"unix:{lock.host}:{identity}"
    dial, certificates = ("", "") if wire is None else (wire.dial, wire.certificates)
    secret = _digest(settings)
    return Replica(identity, lock.name, address, __version__, secret, dial, certificates)


class _NameLock:
    """The right to a name among the replicas of this host, until it is closed or the process ends.

    The process that has the lock knows that every earlier process with the name has ended. ``host``
    is the identity of the state directory, and so of the keeper's host. Raises `UnusableRegistry`.
    """

    def __init__(self, settings: Settings) -> None:
        directory = settings.state_dir / DIRECTORY
        self.name = settings.replica_name or f"{socket.gethostname()}-{_port(settings)}"
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            self.host = _identity(directory)
            path = directory / f"{self.name}.lock"
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            path = error.filename or directory
            raise UnusableRegistry(f"{path} cannot be used: {error.strerror}") from None
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise UnusableRegistry(
                f"another replica of this host has the name {self.name}: give each its own "
                "(replica_name)"
            ) from None

    def close(self) -> None:
        """Let another process have the name."""
        os.close(self._descriptor)


def _port(settings: Settings) -> str:
    return str(settings.port) if settings.port else secrets.token_hex(4)


def _identity(directory: Path) -> str:
    """A random text that tells this state directory from that of any other host."""
    # Two replicas may start here at the same time, for the first time: O_EXCL lets one of them make
    # the file. The other may read it before it is written, and raises the error below.
    path = directory / _IDENTITY
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        pass
    else:
        with open(descriptor, "w") as file:
            file.write(secrets.token_hex(16))
    found = path.read_text().strip()
    if not found:
        raise UnusableRegistry(f"{path} is empty: try again, or remove it")
    return found


def _digest(settings: Settings) -> str:
    """A digest that replicas with the same token, and only those, have in common.

    A reader of the registry could guess a short token, so the digest is as slow as that of a
    password.
    """
    token = settings.token.get_secret_value().encode()
    return hashlib.scrypt(token, salt=b"kernelkeep replicas", n=2**12, r=8, p=1).hex()
