"""The kernels of a server as one caller finds them.

Routes have this view, and never the manager behind it. A kernel that the caller may not read is not
there: the error is the one for an id that no kernel has ever had. So nothing tells one owner what
another has.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Final
from uuid import UUID, uuid5

from ...settings import Settings
from ..errors import (
    InvalidEnvironment,
    InvalidPath,
    InvalidShare,
    KernelNotFound,
    NotAuthorized,
    ShareNotFound,
    TooManyShares,
)
from ..handover.elsewhere import KernelElsewhere
from ..handover.store import StoreAway
from ..owners.names import InvalidName, owner_name
from ..owners.ownership import (
    MAX_SHARES,
    Grantee,
    Ownership,
    Share,
    access,
    may_share,
)
from ..owners.principal import Principal
from ..processes.engines.quantities import Value
from ..processes.paths import ResolutionModel, ResolvedPathModel, UnresolvedScopeModel, api_path
from ..processes.specs import Specs
from ..replicas.errors import KernelElsewhereError, RegistryUnavailable, ReplicaUnreachable
from .departures import Departure
from .kernel import Kernel
from .multikernel import MultiKernelManager
from .table import checked_id, connections, keys_for, last_activity
from .usage import KernelUsage, Series

__all__ = ["CallersKernels", "Permission", "no_longer_shared"]

Permission = Callable[[], bool]
"""Tells whether something may still be done that was allowed when it began."""

USERNAME: Final = "KERNEL_USERNAME"
"""The variable by which Jupyter's gateway clients tell for whom they start a kernel."""

_IDS: Final = UUID("8d1c6a6f-0f8b-4a0e-9f3e-5c6f8a4f2b11")
"""The namespace of ids that are made from an owner's name and the id that the owner has chosen."""


class CallersKernels:
    """What one principal finds of a server's kernels, and may do with them."""

    def __init__(self, manager: MultiKernelManager, principal: Principal) -> None:
        self.principal = principal
        self._manager = manager
        self._everything = principal.scopes.everything
        self._all = principal.scopes.of_all("read", "kernels")
        self._keys = keys_for(principal)
        self._last_request = manager.started
        self.check_adopted = manager.check_adopted
        self._seen: tuple[int, list[Kernel]] = (-1, [])
        self._models: tuple[list[Kernel], list[int], int, bytes] = ([], [], 0, b"[]")

    # Looking

    def __iter__(self) -> Iterator[Kernel]:
        """The kernels that the caller may read, in the order in which they were started."""
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    @property
    def _found(self) -> list[Kernel]:
        """The kernels, looked for once per change of what there is. The list does not change."""
        # What a caller may read changes with the kernels' shares alone, and those count in the
        # version: a principal's scopes and groups never change.
        version = self._manager.version
        if self._seen[0] != version:
            found: Iterable[Kernel] = self._manager
            if not self._all:
                found = filter(self._reads, self._manager.found_by(self._keys))
            self._seen = version, [*found]
        return self._seen[1]

    def __contains__(self, kernel_id: object) -> bool:
        """Whether there is the kernel for the caller, with this server or another replica."""
        if self._everything and kernel_id in self._manager:
            return True
        if not isinstance(kernel_id, str):
            return False
        return self._find(kernel_id) is not None or self._elsewhere(kernel_id) is not None

    def get(self, kernel_id: str) -> Kernel:
        """The kernel with this id. Raises `KernelNotFound`, for others' kernels, too, and
        `ReplicaUnreachable` for one that this replica has just let go: the request may come again.
        """
        kernel = self._find(kernel_id)
        if kernel is not None:
            return kernel
        if self._elsewhere(kernel_id) is not None:
            raise ReplicaUnreachable
        raise KernelNotFound(kernel_id).hiding(self.hidden(kernel_id))

    def _elsewhere(self, kernel_id: str) -> KernelElsewhere | None:
        """A kernel of another replica, if the caller may read it."""
        if kernel_id in self._manager:
            return None
        found = self._manager.elsewhere.kernels.get(kernel_id)
        if found is None or not (self._everything or self._reads(found)):
            return None
        return found

    def model_of(self, kernel_id: str) -> bytes:
        """The model of a kernel, of whichever replica, as JSON. Raises `KernelNotFound`."""
        found = self._elsewhere(kernel_id)
        return self.get(kernel_id).model if found is None else found.model

    def known_id(self, kernel_id: str) -> str | None:
        """This id, if the caller has a kernel of it, at whichever replica."""
        try:
            self.model_of(kernel_id)
        except KernelNotFound:
            return None
        return kernel_id

    def chosen(self, kernel_id: str) -> str:
        """The id of the kernel that the caller calls so, or will. Raises `InvalidKernelId`.

        An id that an owner among others has chosen is made another one, by which the owner finds
        the same kernel at each start: whether somebody else has a kernel of the chosen id makes no
        difference, and so is not told.
        """
        chosen = checked_id(kernel_id)
        if self._everything or chosen in self:
            return chosen
        return str(uuid5(_IDS, f"{self.principal.owner}\0{chosen}"))

    def ownership_of(self, kernel_id: str) -> Ownership:
        """Whose a kernel is, of whichever replica. Raises `KernelNotFound`."""
        found = self._elsewhere(kernel_id)
        return self.get(kernel_id).ownership if found is None else found.ownership

    def hidden(self, kernel_id: str) -> dict[str, str]:
        """A kernel that is there but not for the caller, in the fields of the audit log.

        Empty if the caller finds the kernel, or there is none. Nothing of it may be told to the
        caller.
        """
        if kernel_id in self or kernel_id not in self._manager:
            return {}
        return {"kernel_id": kernel_id, "owner": self._manager.get(kernel_id).ownership.owner}

    def require(self, action: str, kernel_id: str) -> Kernel:
        """The kernel with this id, if the caller may do ``action`` with it.

        Raises `KernelNotFound`, or `NotAuthorized` for one that the caller may read only.
        """
        kernel = self.get(kernel_id)
        if not (self._everything or access(self.principal, action, "kernels", kernel.ownership)):
            raise NotAuthorized(action, "kernels")
        return kernel

    def _find(self, kernel_id: str) -> Kernel | None:
        if kernel_id not in self._manager:
            return None
        kernel = self._manager.get(kernel_id)
        return kernel if self._everything or self._reads(kernel) else None

    def _reads(self, kernel: Kernel | KernelElsewhere | Departure) -> bool:
        return access(self.principal, "read", "kernels", kernel.ownership)

    @property
    def models(self) -> bytes:
        """The models of the kernels, as a JSON list, put together once per change."""
        found, changes = self._found, self._manager.elsewhere.changes
        each = [kernel.state.changes for kernel in found]
        if self._models[0] is not found or self._models[1:3] != (each, changes):
            self._models = found, each, changes, self._listed(found)
        return self._models[3]

    def models_of(self, owner: str) -> bytes:
        """The models of those kernels that are an owner's, as a JSON list."""
        found = self._manager.found_by([("owner", owner)])
        return self._listed([one for one in found if self._reads(one)], owner)

    def _listed(self, here: list[Kernel], owner: str | None = None) -> bytes:
        """The models of kernels of this server, and of those that other replicas have."""
        others = self.others(owner)
        if not others:
            return b"[" + b",".join([kernel.model for kernel in here]) + b"]"
        everybody: list[Kernel | KernelElsewhere] = [*here, *others]
        everybody.sort(key=lambda one: one.created)
        return b"[" + b",".join([one.model for one in everybody]) + b"]"

    def others(self, owner: str | None = None) -> list[KernelElsewhere]:
        """The kernels of other replicas that the caller may read; or those of an owner."""
        return [
            one
            for one in self._manager.elsewhere.kernels.values()
            if one.id not in self._manager
            and owner in (None, one.ownership.owner)
            and (self._all or self._reads(one))
        ]

    @property
    def by_replica(self) -> Counter[str]:
        """How many of the caller's kernels each replica has, as the registry tells."""
        known = self._manager.elsewhere.kernels.values()
        found = [one for one in known if self._all or self._reads(one)]
        return Counter(one.replica for one in found if one.replica is not None)

    @property
    def last_activity(self) -> float:
        """When the caller's kernels or the API were last used, in seconds since the epoch."""
        if self._all:
            return self._manager.last_activity
        return last_activity(self, self._last_request)

    @property
    def connections(self) -> int:
        """Open channel WebSockets on the caller's kernels."""
        return connections(self)

    @property
    def started(self) -> float:
        """When the server was started, in seconds since the epoch."""
        return self._manager.started

    async def cwd_for_path(self, path: str) -> Path:
        """The directory that a kernel of the caller's works in if it is started for ``path``.

        Raises `InvalidPath` and `IsolationUnavailable`.
        """
        return await self._manager.cwd_for_path(path, self.principal.owner)

    @property
    def settings(self) -> Settings:
        """The options of this server."""
        return self._manager.settings

    @property
    def specs(self) -> Specs:
        """The kernelspecs."""
        return self._manager.specs

    def check_running(self) -> None:
        """Raise `ServerStopping` if the server is shutting down."""
        self._manager.check_running()

    def touch(self) -> None:
        """The caller has used the API."""
        self._last_request = time.time()
        self._manager.touch()

    async def refresh(self) -> None:
        """Look for external kernels that have come or gone, if they are allowed."""
        await self._manager.refresh()

    async def resolve_path(self, path: str, kernel_id: str | None = None) -> ResolutionModel:
        """The file that a path means which a person saw, for instance in a traceback.

        In the scope ``server`` the path is relative to the root directory, and nothing outside of
        that is found, nor anything for who may not read contents. In the scope ``kernel`` the
        kernel's provisioner resolves the path.
        """
        resolution = ResolutionModel()
        root = await self._manager.isolation.files_root(self.principal)
        found = None if root is None else await asyncio.to_thread(api_path, root, path)
        if found is not None:
            resolution.resolved.append(ResolvedPathModel("server", found))
        if kernel_id and kernel_id not in self:
            reason = f"Kernel {kernel_id} could not be found"
            resolution.unresolved = [UnresolvedScopeModel("kernel", reason)]
        elif kernel_id:
            found = await self.get(kernel_id).resolve_path(path)
            if found is not None:
                resolution.resolved.append(ResolvedPathModel("kernel", found))
        return resolution

    async def usage(self, kernel_id: str, *, history: bool = False) -> KernelUsage:
        """What a kernel uses of the machine (`UsageSampler.usage`).

        What its owner's other kernels use is not for those with whom it is shared.
        """
        kernel = self.get(kernel_id)
        usage = await self._manager.usage.usage(kernel, history=history)
        if not (self._everything or may_share(self.principal, "read", kernel.ownership)):
            usage.owner_memory = None
        return usage

    def output_file(self, kernel_id: str) -> Path:
        """The file with what a kernel's processes write themselves. Raises `KernelNotFound`."""
        return self._manager.output_file(self.get(kernel_id).id)

    def samples(self, kernel: Kernel) -> Series | None:
        """The samples that there are of what a kernel uses."""
        return self._manager.usage.last(kernel.id)

    async def sample(self, most: int) -> None:
        """Have new samples of those kernels whose samples are the oldest, ``most`` at a time."""
        reached = [
            kernel for kernel in self if kernel.state.running and not kernel.state.unreachable
        ]
        await self._manager.usage.refresh_oldest(reached, most)

    @property
    def departed(self) -> int:
        """The number of the latest departure, of whosever kernel."""
        return self._manager.departures.last

    def departures(self, since: int) -> list[Departure]:
        """The kernels that have ended lately, and that the caller could read, behind a number."""
        found = self._manager.departures.since(since, time.time())
        return [one for one in found if self._all or self._reads(one)]

    def permission(self, action: str, kernel: Kernel) -> Permission:
        """Tells from time to time whether the caller may still do ``action``: a share can end."""
        if self._everything:
            return _always
        return partial(access, self.principal, action, "kernels", kernel.ownership)

    def session_key(self, kernel: Kernel, session_id: str) -> str:
        """The name under which the caller's session is known to a kernel.

        Sessions are known by ids that clients choose. On a kernel that is shared, nobody must be
        able to take over the session of another owner by its id.
        """
        if self._everything or kernel.ownership.owner == self.principal.owner:
            return session_id
        return sha256(f"{self.principal.owner}\0{session_id}".encode()).hexdigest()

    # Doing

    async def start_kernel(
        self,
        name: str | None = None,
        *,
        path: str | None = None,
        env: Mapping[str, str] | None = None,
        kernel_id: str | None = None,
        new_id: str = "",
        given: Mapping[str, Value] | None = None,
    ) -> Kernel:
        """Start a kernel of the caller's (`MultiKernelManager.start_kernel`).

        Raises `KernelElsewhereError`, too.
        """
        if kernel_id is not None:
            asked_for, kernel_id = checked_id(kernel_id), self.chosen(kernel_id)
            if self._elsewhere(kernel_id) is not None:
                raise KernelElsewhereError(kernel_id)
            if kernel_id == asked_for and not self._everything:  # it is the id of one that is there
                return self.get(kernel_id)
        ownership = self._ownership(env or {})
        return await self._manager.start_kernel(
            name,
            path=path,
            env=env,
            kernel_id=kernel_id,
            new_id=new_id,
            ownership=ownership,
            given=given,
        )

    def _ownership(self, env: Mapping[str, str]) -> Ownership:
        """Whose a kernel is that the caller starts with these variables."""
        username = env.get(USERNAME)
        if not username or self.principal.owner not in self.settings.trusted_gateways:
            return Ownership.of(self.principal)
        try:
            return Ownership(owner_name(username))
        except InvalidName as error:
            raise InvalidEnvironment(f"env: {USERNAME}: {error}") from None

    async def adopt_file(self, name: str, *, owned: bool) -> Kernel:
        """The external kernel of a connection file (`MultiKernelManager.adopt_file`).

        Raises `InvalidPath` too for who may not use everybody's kernels: such a kernel has no owner
        among the callers.
        """
        if not self._all:
            raise InvalidPath("connection_file: the server has no directory for such files")
        return await self._manager.adopt_file(name, owned=owned)

    async def interrupt_kernel(self, kernel_id: str) -> None:
        """Interrupt what a kernel runs (`Kernel.interrupt`)."""
        await self.require("write", kernel_id).interrupt()

    async def restart_kernel(
        self, kernel_id: str, *, now: bool = False, newports: bool = False
    ) -> Kernel:
        """Give a kernel a new process (`MultiKernelManager.restart_kernel`)."""
        self.require("write", kernel_id)
        return await self._manager.restart_kernel(kernel_id, now=now, newports=newports)

    async def shutdown_kernel(
        self, kernel_id: str, *, now: bool = False, give_up: bool = False
    ) -> None:
        """Stop a kernel and forget it (`MultiKernelManager.shutdown_kernel`).

        One that is elsewhere, where no replica reaches it, can be given up. Raises
        `ReplicaUnreachable` and `RegistryUnavailable`, too.
        """
        lost = self._elsewhere(kernel_id)
        if lost is not None:
            await self._give_up(lost, give_up=give_up)
            return
        self.require("write", kernel_id)
        await self._manager.shutdown_kernel(kernel_id, now=now, give_up=give_up)

    async def _give_up(self, lost: KernelElsewhere, *, give_up: bool) -> None:
        if not (self._everything or access(self.principal, "write", "kernels", lost.ownership)):
            raise NotAuthorized("write", "kernels")
        if lost.is_reachable or not give_up:
            raise ReplicaUnreachable
        try:
            is_gone = await self._manager.elsewhere.give_up(lost.id)
        except StoreAway:
            raise RegistryUnavailable from None
        if not is_gone:  # a replica has taken it meanwhile
            raise ReplicaUnreachable

    async def relocate_kernel(
        self, kernel_id: str, path: str | None, env: Mapping[str, str]
    ) -> None:
        """Change what a kernel's next process gets (`MultiKernelManager.relocate_kernel`)."""
        self.require("write", kernel_id)
        await self._manager.relocate_kernel(kernel_id, path, env)

    # Shares

    def shares(self, kernel_id: str) -> list[Share]:
        """The shares of a kernel. Raises `KernelNotFound`, or `NotAuthorized` for a grantee."""
        return [*self._shared("read", kernel_id).ownership]

    async def share(self, kernel_id: str, share: Share) -> Share:
        """Share a kernel; a grantee that has a share of it gets this one in its place.

        Raises `InvalidShare`, `TooManyShares`, `KernelNotFound` or `NotAuthorized`.
        """
        kernel = self._shared("write", kernel_id)
        owned = kernel.ownership
        share = Share(share.kind, _grantee_name(share.kind, share.name), share.access)
        if share.grantee == ("name", owned.owner):
            raise InvalidShare("name: is the kernel's owner")
        if share.grantee not in owned and owned.count >= MAX_SHARES:
            raise TooManyShares(MAX_SHARES)
        owned.grant(share)
        await self._manager.shares_changed(kernel)
        return share

    async def revoke(self, kernel_id: str, grantee: Grantee) -> Share:
        """Share a kernel no longer with a grantee; returns the share that ends.

        Raises `ShareNotFound`, `InvalidShare`, `KernelNotFound` or `NotAuthorized`.
        """
        kernel = self._shared("write", kernel_id)
        if (share := kernel.ownership.revoke((grantee[0], _grantee_name(*grantee)))) is None:
            raise ShareNotFound
        await self._manager.shares_changed(kernel)
        return share

    def _shared(self, action: str, kernel_id: str) -> Kernel:
        kernel = self.get(kernel_id)
        if not may_share(self.principal, action, kernel.ownership):
            raise NotAuthorized(action, "kernels")
        return kernel


def no_longer_shared(kernel: Kernel) -> KernelNotFound:
    """The error for a caller whose share of a kernel has ended meanwhile."""
    hidden = {"kernel_id": kernel.id, "owner": kernel.ownership.owner}
    return KernelNotFound(kernel.id).hiding(hidden)


def _always() -> bool:
    return True


def _grantee_name(kind: str, text: str) -> str:
    try:
        return owner_name(text)
    except InvalidName as error:
        raise InvalidShare(f"{kind}: {error}") from None
