"""The registry that this server shares with other replicas, as their member.

Kernels, executions, the places of clients, and sessions are in PostgreSQL. What is on the disk of
the kernels' host stays there, in the state directory that the replicas of a host share: the keeper
with its sockets, logs and connection files. So a host's replicas take over each other's kernels,
and those of other hosts send requests for them on.
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
"""The pauses after which an adoption asks for executions again. Those that wait would not run."""

_IDENTITY: Final = "identity"

DIAL: Final = "dial"
SSH: Final = "ssh"
"""How keepers are reached that are on other hosts: they dial in, or are dialled there."""


def check_shared_registry(settings: Settings) -> None:
    """Bring the shared registry to this version, and see whether this replica may join the others.

    Raises `UnusableRegistry` if not, or if the registry cannot be used.
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
    with the id of a kernel that is found to be another replica's.
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
        # With a thread of its own, as the member, the directory and the keepers have: a lease is
        # renewed, and keepers are let in, however much there is to write.
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
        # By kernel: what was read when the kernel was taken, until its adoption asks for that.
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
        """As `Registry.executions`, but none are missing because the registry was away a moment."""
        found = self._executions_found.pop(kernel_id, None)
        if found is not None:
            return found
        for pause in READ_AGAIN_SECONDS:
            if kernel_id not in self.terms:  # another replica has it, and reads them
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
        """Whether a kernel of this replica's is in the registry, or was not to be saved yet."""
        # A write that was refused has dropped the term by now: `_fence_later` is called before the
        # write returns to the loop, in whose order its effect comes first.
        return kernel_id in self.terms and kernel_id not in self._missed

    async def execution_stored(self, kernel_id: str, execution_id: str, term: int) -> None:
        """As `Registry.execution_stored`. Raises `RegistryUnavailable` and `ReplicaUnreachable`.

        The replica that has the kernel next would not know an execution that is here alone, while
        its client was told that it will run.
        """
        if self.member.is_away:
            raise RegistryUnavailable
        # After the wait, the kernel may be another replica's. The execution may be unwritten: the
        # write has failed or takes too long, and a later flush may be at it just now.
        await self.stored()
        if not term or self.terms.of(kernel_id) != term:
            # It may have been stored before the kernel was taken: whoever has that runs it then.
            raise ReplicaUnreachable(begun=True)
        if (kernel_id, execution_id) in self._unwritten:
            raise RegistryUnavailable

    def listens(self, addresses: Sequence[str]) -> None:
        """Note where keepers dial this replica: it can take kernels whose keepers dial in."""
        self.member.agents = addresses
        self._reached.append(DIAL)

    def _keeper_of(self, record: KernelRecord) -> str:
        """How the keeper of a kernel is reached: who reaches it can take the kernel over."""
        name = elsewhere(record.spec.get("metadata", {}))
        if not name:
            return self._here
        return SSH if name == SSH_PROVISIONER else DIAL

    def _fence_later(self, kernel_id: str, term: int) -> None:
        def fence() -> None:
            # The write may have been of an earlier term than that in which the kernel is here now.
            if self.terms.of(kernel_id) == term:
                self.fence(kernel_id)

        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(fence)

    @property
    def _present(self) -> RegistryStore:
        return self._shared_store.at(self.terms.now())

    def fence(self, kernel_id: str) -> None:
        """Give up this kernel, which another replica has taken."""
        # The term goes first: nothing that is asked of the keeper, or written, counts from now on.
        # What a flush has given to the thread goes with the old term, and the row in the registry
        # refuses it. No await is in here: whatever is told by `on_fenced` finds nothing left of
        # this tenure.
        self.terms.drop(kernel_id)
        self._newest.pop(kernel_id, None)
        self._missed.pop(kernel_id, None)
        # It may come back in a later term, and must not find there what belongs to this one.
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
        """Whether a kernel is still to be stored or deleted, or waits in an engine's queue."""
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
        # Whoever takes a kernel reads what is stored by then, and refuses what comes behind that.
        # So what could not be stored is tried again, in the end by `leave`, and freed behind that.
        missing = self._missed.keys() | {kernel_id for kernel_id, _ in self._unwritten}
        terms = {each: self.terms.of(each) for each in kernel_ids if each not in missing}
        await self.member.release(terms)
        return terms

    async def leave(self) -> None:
        """Write what waits, then leave the kernels to the others."""
        # The order is that of the next owner's needs: what the database takes in time is stored
        # before the kernels are free. Afterwards this replica has no terms, and the registry
        # refuses what still waits in the thread. Each statement has a bound, but there may be one
        # for each kernel that was not stored: so all together have one as well.
        with contextlib.suppress(StoreAway, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._make_up()
                await self._flush_all()
        await self.member.close()
        for kernel_id in self.terms:
            self.terms.drop(kernel_id)

    async def close(self) -> None:
        """Leave the kernels to the others, if that was not done before, and stop."""
        await self.counting.close()
        # `leave` may have been called before (`Handover.hand_over_rest`), and finds nothing to do.
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

    Whoever has it knows that no process before has the name any more. ``host`` is the identity of
    the state directory, which is that of the keeper's host as well. Raises `UnusableRegistry`.
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
    """What tells this state directory from that of any other host."""
    # Two replicas that start for the first time: O_EXCL lets one of them make the file. The other
    # may read it before it is written, which is told as such below.
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

    Tokens are long and random. A short one could be guessed by whoever reads the registry, so the
    digest is as slow as that of a password.
    """
    token = settings.token.get_secret_value().encode()
    return hashlib.scrypt(token, salt=b"kernelkeep replicas", n=2**12, r=8, p=1).hex()
