"""The multi-kernel manager: every kernel of this server, by id."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Container, Iterable, Iterator, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Final
from uuid import uuid4

from ..errors import (
    KernelNotFound,
    KernelNotRunning,
    KernelStartFailed,
    KernelUnreachable,
    ServerStopping,
)
from ..handover.adoption import find_spec
from ..handover.elsewhere import Known, Nowhere
from ..handover.handover import Rest
from ..handover.store import KernelRecord
from ..owners.ownership import Ownership
from ..processes.engines.caller_options import check_given
from ..processes.engines.quantities import Value
from ..processes.paths import cwd_for_path
from ..processes.specs import Specs
from ..state import Lifecycle
from .culling import Culler, CullingPolicy, cull_cause, cull_reason
from .departures import Departures
from .external import ExternalKernels
from .kernel import Kernel
from .moving import WantedKernel, place_of, wanted_kernel
from .overview import host_of
from .services import KernelServices
from .shares import KernelShares
from .stopping import (
    HandingOver,
    end_unsaved,
    leave_all,
    leave_now,
    stop_all,
    stop_or_give_up,
    stop_quietly,
)
from .table import KernelTable, Key, checked_id, connections, last_activity
from .time_limits import TimeLimits
from .usage import UsageSampler
from .usage_events import UsageEvents
from .warm import WarmKernels

__all__ = ["MultiKernelManager"]


MAX_DEAD: Final = 32
"""Kernels of one owner that are listed although they have died.

The oldest are forgotten at the owner's next start."""


class MultiKernelManager:
    """Starts, finds and stops kernels (`construction.multi_kernel_manager` makes one).

    Make it inside a running event loop, and `close` it there: that closes ``services`` too.
    """

    def __init__(self, services: KernelServices, specs: Specs, warm: WarmKernels) -> None:
        self.started = time.time()
        self.specs = specs
        self.warm = warm
        self.keepers, self.isolation = services.keepers, services.isolation
        self.starts = services.starts
        self.output_file = services.output_file
        self._last_request = self.started
        self._services = services
        self.settings = settings = services.settings
        self._handover = services.handover
        self.adopting: Container[str] = services.handover.adopting
        self._kernels = KernelTable()
        self.departures = Departures()
        self._external = ExternalKernels(services, self._kernels, self._forget)
        self._starting: dict[str, asyncio.Future[None]] = {}
        self.shares = KernelShares(self._kernels, settings.max_kernels, services.shares)
        services.queues = self.shares
        self.elsewhere: Known = Nowhere()
        """The kernels and sessions of all replicas, as the registry has them."""
        self._stop_task: asyncio.Task[None] | None = None
        policy = CullingPolicy(
            settings.cull_idle_timeout, connected=settings.cull_connected, busy=settings.cull_busy
        )
        culler = Culler(self, self.cull_kernel, policy, settings.cull_interval)
        limits = TimeLimits(self, services.shares, culler.cull)
        loop = asyncio.get_running_loop()
        self._culling = [
            loop.create_task(culler.run(), name="culler"),
            loop.create_task(limits.run(), name="time limits of kernels"),
        ]
        self._usage_events = UsageEvents(self, services.usage, services.events)
        self._handover.watch(self)

    async def adopt_kernels(self) -> None:
        """Adopt the kernels that an earlier server has left; call this first, and once."""
        # The starts are busy meanwhile, so no warm kernel is started yet: the adoption would take
        # its process for one that was left, and end it as unknown.
        with self.starts.busy():
            await self._handover.adopt(self._adopt)
        # Adoptions end in any order, and late ones go on behind this: those kernels come last.
        in_order = sorted(self._kernels.items(), key=lambda item: item[1].created)
        self._kernels.clear()  # and filled again before anything else can run
        self._kernels.update(in_order)
        for owner in {kernel.ownership.owner for kernel in self}:
            await self._forget_the_dead(owner)

    async def _adopt(self, record: KernelRecord) -> None:
        if record.external:
            external = self._external.known(record)
            if external is None:
                await self._handover.delete(record.id)
            else:
                await self._own(external, record)
            return
        spec = await find_spec(self._services.specs, record)
        kernel = Kernel(
            record.id,
            record.name,
            spec,
            self._services,
            place=Path(record.cwd),
            env=record.env,
            on_gone=self._forget,
            ownership=Ownership(record.owner, record.owner_groups, record.shares),
            given=record.given,
        )
        await self._own(kernel, record)

    async def _own(self, kernel: Kernel, record: KernelRecord) -> None:
        self._kernels[kernel.id] = kernel
        # Listed before it is adopted: a start with its id finds it, and makes no second one.
        try:
            await kernel.adopt(record)
        except BaseException:
            if self._kernels.get(kernel.id) is kernel:  # else `let_go` has removed it meanwhile
                self._kernels.pop(kernel.id)  # not `_forget`: the kernel has not ended
            raise

    # Looking

    def __len__(self) -> int:
        return len(self._kernels)

    def __contains__(self, kernel_id: object) -> bool:
        return kernel_id in self._kernels

    def __iter__(self) -> Iterator[Kernel]:
        """The kernels in the order in which they were started."""
        return iter(tuple(self._kernels.values()))

    @property
    def version(self) -> int:
        """Counts the changes of which kernels there are, and of who may see them."""
        return self._kernels.version

    @property
    def usage(self) -> UsageSampler:
        """Samples what the kernels use of the machine."""
        return self._services.usage

    def get(self, kernel_id: str) -> Kernel:
        """The kernel with this id. Raises `KernelNotFound`."""
        kernel = self._kernels.get(kernel_id)
        if kernel is None:
            raise KernelNotFound(kernel_id)
        return kernel

    def found_by(self, keys: Iterable[Key]) -> list[Kernel]:
        """The kernels that have one of these keys (`KernelTable.found_by`)."""
        return self._kernels.found_by(keys)

    async def shares_changed(self, kernel: Kernel) -> None:
        """Take note of a kernel's shares, and store them for the next server (`Kernel.save`)."""
        # The shares hold at once, and are stored behind that. A crash between the two takes them
        # back; the client has no answer by then, unless `Kernel.save` has returned before (see it).
        self._kernels.index(kernel)
        kernel.executions.wake()  # connections that are not permitted any more end now
        await kernel.save()

    @property
    def last_activity(self) -> float:
        """When a client last used a kernel or the API, in seconds since the epoch."""
        return last_activity(self, self._last_request)

    @property
    def connections(self) -> int:
        """Open channel WebSockets on all kernels."""
        return connections(self)

    @property
    def stopping(self) -> bool:
        """Whether the server is shutting down, and takes no new work."""
        return self._stop_task is not None

    def check_running(self) -> None:
        """Raise `ServerStopping` if the server is shutting down."""
        if self.stopping:
            raise ServerStopping()

    def check_adopted(self, kernel_id: str) -> None:
        """Raise `KernelUnreachable` for a kernel that waits to be adopted."""
        # Only some kernels are adopted at a time: one that waits for its turn is not listed yet.
        if kernel_id in self.adopting and kernel_id not in self._kernels:
            text = f"Kernel {kernel_id} is being taken over from an earlier server"
            raise KernelUnreachable(text)

    def touch(self) -> None:
        """A client has used the API."""
        self._last_request = time.time()

    async def refresh(self) -> None:
        """Look for external kernels that have come or gone, if they are allowed."""
        if not self.stopping:
            await self._external.refresh()

    async def adopt_file(self, name: str, *, owned: bool) -> Kernel:
        """The external kernel of a connection file (`ExternalKernels.adopt_file`).

        Raises `InvalidPath` and `ServerStopping`.
        """
        self.check_running()
        return await self._external.adopt_file(name, owned=owned)

    async def cwd_for_path(self, path: str, owner: str) -> Path:
        """The directory that an owner's kernel works in if it is started for ``path``.

        Raises `InvalidPath` and `IsolationUnavailable`.
        """
        return cwd_for_path(await self._services.isolation.root(owner), path)

    # Doing

    async def relocate_kernel(
        self, kernel_id: str, path: str | None, env: Mapping[str, str]
    ) -> None:
        """Change the environment of a kernel's next process, and its directory unless None.

        Raises `KernelNotFound` and `IsolationUnavailable`.
        """
        kernel = self.get(kernel_id)
        root = await self._services.isolation.root(kernel.ownership.owner)
        place = None if path is None else place_of(root, path)
        await kernel.relocate(place, env)

    async def start_kernel(
        self,
        name: str | None = None,
        *,
        path: str | None = None,
        env: Mapping[str, str] | None = None,
        kernel_id: str | None = None,
        new_id: str = "",
        ownership: Ownership | None = None,
        given: Mapping[str, Value] | None = None,
    ) -> Kernel:
        """Start a kernel, or return the one that has this id already.

        Without a ``kernel_id`` the kernel gets ``new_id``, which no kernel has. If that is empty
        too, the kernel may have any id: a warm kernel keeps its own.
        Returns when the process is launched, before it is ready. Until the start's turn comes
        the kernel is listed as ``starting``. ``path`` is where it works, relative to the root
        directory, or to its owner's home; ``given`` are options of its engine. Raises
        `InvalidKernelId`, `InvalidPath`, `InvalidEnvironment`, `EngineOptionRefused`,
        `KernelSpecNotFound`, `KernelSpecInvalid`, `KernelStartFailed`, `KernelNotRunning` (if it is
        shut down first), `KernelUnreachable`, `ServerStopping`, or that a limit is met.
        """
        identity = checked_id(kernel_id) if kernel_id is not None else new_id or str(uuid4())
        # Two calls with one id: the second waits for the start of the first. It returns the first
        # one's kernel, or, if that start has failed, starts a kernel itself.
        # Of several that wait, the first to be woken begins its own start before the next one looks
        # again: nothing is awaited between the last look and the entry in `_starting`.
        while (underway := self._starting.get(identity)) is not None:
            await asyncio.wait({underway})
        self.check_running()
        if identity in self._kernels:
            return self._kernels[identity]
        self.check_adopted(identity)
        self._services.check_start()
        owned = Ownership() if ownership is None else ownership
        is_chosen = kernel_id is not None
        self._starting[identity] = asyncio.get_running_loop().create_future()
        try:
            async with self.shares.place(identity, owned, is_chosen=is_chosen):
                await self.shares.take_start(owned)
                root = await self._services.isolation.root(owned.owner)
                options = path, env or {}, owned, given or {}
                asked = wanted_kernel(self.settings, root, name, *options)
                kernel = await self._start(identity, asked, any_id=not (is_chosen or new_id))
                if kernel.id in self._kernels:  # else it was stopped, or another replica has it
                    await end_unsaved(kernel, self._handover, self.keepers)
                return kernel
        finally:
            self._starting.pop(identity).set_result(None)

    async def _start(self, kernel_id: str, asked: WantedKernel, *, any_id: bool) -> Kernel:
        await self._forget_the_dead(asked.ownership.owner)
        if any_id and (claimed := await self._claim(kernel_id, asked)) is not None:
            return claimed
        with self.starts.admission():
            return await self._start_anew(kernel_id, asked)

    async def _start_anew(self, kernel_id: str, asked: WantedKernel) -> Kernel:
        reports = self._services.reports(kernel_id, asked.name, ownership=asked.ownership)
        async with reports.action("start"):
            spec = await self.specs.find(asked.name)
            check_given(spec, asked.given)
            kernel = Kernel(
                *(kernel_id, asked.name, spec, self._services),
                place=asked.place,
                env=asked.env,
                on_gone=self._forget,
                ownership=asked.ownership,
                given=asked.given,
            )
            kernel.reports = reports  # its start is the first of its events
            # Listed before its turn comes: it can be seen, and stopped, while it waits. `_launch`
            # removes it if it is never launched.
            self._kernels[kernel_id] = kernel
            await self._launch(kernel)
        if self.stopping:  # the server began to stop while this one was launched
            await self.shutdown_kernel(kernel_id)
            raise ServerStopping()
        return kernel

    async def _claim(self, kernel_id: str, asked: WantedKernel) -> Kernel | None:
        """Claim a warm kernel that is, or can be made, what is asked for; None if there is none.

        The kernel keeps its own id, and does not get ``kernel_id``.
        """
        began = time.monotonic()
        kernel = await self.warm.claim(asked)
        if kernel is None:
            return None
        # Nothing may be awaited between the claim and the `try` below: a kernel that is neither
        # parked nor listed would be ended by nobody if this were cancelled there.
        kernel.hand_over(self._services, asked, self._forget)
        self._kernels[kernel.id] = kernel
        self.shares.taken(kernel_id)  # the kernel, listed under its own id, counts in its place
        # `_stop_all` looks here, by the kernel's own id, for kernels whose start is not answered
        # yet. It stops this one if it comes at an await below: the client never hears of it.
        self._starting[kernel.id] = self._starting[kernel_id]
        try:
            await kernel.impose_limits()
            await kernel.register()
            if kernel.id not in self._kernels:  # `_stop_all` or another replica has ended it
                self.check_running()
                raise KernelStartFailed("its replica was declared dead")
        except BaseException:
            await stop_quietly(kernel, now=True)
            raise
        finally:
            del self._starting[kernel.id]
        async with kernel.reports.action("start"):
            if self.stopping:
                await kernel.stop(now=True)
                raise ServerStopping
        kernel.reports.ready(time.monotonic() - began)
        return kernel

    async def _launch(self, kernel: Kernel) -> None:
        try:
            await self.starts.launch(kernel.start, kernel.came_up)
        except BaseException as error:
            # A kernel whose turn never came is listed: the stop removes it. After a launch that
            # failed, `Kernel.start` has removed it, or it has a process that could not be ended
            # and stays listed with that.
            if not isinstance(error, KernelStartFailed):
                await stop_quietly(kernel)
            if isinstance(error, KernelNotRunning) and self.stopping:
                raise ServerStopping() from None
            raise

    async def restart_kernel(
        self, kernel_id: str, *, now: bool = False, newports: bool = False
    ) -> Kernel:
        """Give a kernel a new process (`Kernel.restart`).

        Raises `KernelNotFound`, `KernelNotRunning`, `KernelNotStopped`, `KernelStartFailed`,
        `ServerStopping`, `TooManyStarts`, `StartsLimit`, and, for a dead kernel when others have
        taken its place, what `KernelShares.place` raises.
        """
        self.check_running()
        kernel = self.get(kernel_id)
        # A kernel that dies behind this look is restarted without a place: it has just had one.
        is_dead = kernel.state.lifecycle is Lifecycle.DEAD
        async with self.shares.place(kernel_id, kernel.ownership) if is_dead else nullcontext():
            await self.shares.take_start(kernel.ownership)
            await kernel.restart(now=now, newports=newports)
        return kernel

    async def shutdown_kernel(
        self, kernel_id: str, *, now: bool = False, give_up: bool = False
    ) -> None:
        """As `stop_or_give_up`. Raises `KernelNotFound`, too."""
        await stop_or_give_up(self.get(kernel_id), self.keepers, now=now, give_up=give_up)

    async def cull_kernel(self, kernel_id: str, idle_seconds: float, limit: str = "") -> None:
        """Stop a kernel that nobody has used for ``idle_seconds``, or for its owner's ``limit``.

        Raises `KernelNotFound`.
        """
        kernel = self.get(kernel_id)
        # A client may have begun to restart the kernel since the culler has looked. The stop would
        # wait for that, and then end the new process; the culler's next look finds that in use. No
        # await is between this and the moment when `Kernel.stop` has the kernel's lock.
        if kernel.is_changing and not limit:
            return
        why, clients = cull_reason(idle_seconds, limit), len(kernel.traffic.clients)
        kernel.reports.culled(limit or cull_cause(kernel), idle_seconds, clients, limit)
        kernel.traffic.why_it_stops = why if limit else "The kernel was culled"
        await kernel.stop(why=why)

    def let_go(self, kernel_id: str) -> Rest:
        """Leave a kernel to another replica, which has it already.

        When this returns, no request finds the kernel here, and this object stores nothing more of
        it: this replica may take it anew, as another object. The caller has to call the result.
        """
        kernel = self._kernels.pop(kernel_id, None) or self.warm.drop(kernel_id)
        if kernel is not None:
            kernel.lose()
        return partial(leave_now, kernel_id, kernel, self.keepers)

    def begin_stop(self) -> None:
        """Begin to stop the server: refuse new starts, end streams, begin to stop the kernels."""
        if self._stop_task is None:
            self.starts.stop()
            for kernel in self:
                kernel.executions.close_streams()
            self._services.events.close()
            loop = asyncio.get_running_loop()
            self._stop_task = loop.create_task(self._stop_all(), name="stop of all kernels")

    async def stopped(self) -> None:
        """Stop or leave every kernel; returns when that is done, or has taken too long."""
        self.begin_stop()
        assert self._stop_task is not None
        # The caller may be cancelled: the stops go on, for kernels that were asked to end already.
        await asyncio.shield(self._stop_task)

    async def _stop_all(self) -> None:
        # No cull begins from here on. Those that have begun go on: they hold their kernels' locks,
        # and the stops below wait for that.
        for task in self._culling:
            task.cancel()
        self._usage_events.close()
        await asyncio.wait(self._culling)
        warm = asyncio.get_running_loop().create_task(self.warm.close(), name="stop of the warm")
        kernels, adopting = [*self], {*self._handover.adopting}
        # Adoptions end, and no checkpoint comes behind a record that `leave` has stored.
        await self._handover.close()
        own = (kernel.shutdown_seconds for kernel in kernels)
        patience = max((self.settings.shutdown_wait_time, *own))
        handing_over = HandingOver(self._handover)
        if self._handover.hands_over:
            # Kernels that are not adopted yet are this server's in the registry alone.
            handing_over.add(*adopting.difference(self._kernels, (one.id for one in kernels)))
            # A client that waits for the answer to a start gets an error: its kernel is stopped.
            asked_for = [kernel for kernel in kernels if kernel.id in self._starting]
            kernels = [kernel for kernel in kernels if kernel.id not in self._starting]
            bounds = self.settings.orphan_timeout, patience
            kernels = asked_for + await leave_all(kernels, *bounds, handing_over.add)
        await stop_all(kernels, [*self._starting.values(), warm], patience)
        await handing_over.end()

    def _forget(self, kernel: Kernel) -> None:
        # A kernel that is not listed has not gone: it has never come (`ExternalKernels`), or it is
        # another replica's by now (`let_go`), and may even be here again as another object.
        if self._kernels.get(kernel.id) is not kernel:
            return
        del self._kernels[kernel.id]
        where, whose = host_of(kernel), kernel.ownership
        self.departures.note(kernel.id, kernel.model, where, whose, time.time())

    async def _forget_the_dead(self, owner: str) -> None:
        """Remove the oldest dead kernels of an owner beyond `MAX_DEAD`; the others stay listed."""
        owned = self._kernels.found_by([("owner", owner)])
        dead = [kernel for kernel in owned if kernel.state.lifecycle is Lifecycle.DEAD]
        for kernel in dead[:-MAX_DEAD]:
            # While the kernel before was removed, this one's owner may have begun to restart it.
            if kernel.state.lifecycle is Lifecycle.DEAD and not kernel.is_changing:
                await stop_quietly(kernel)

    async def close(self) -> None:
        """Stop all kernels (`stopped`), then leave the keepers, and remove what is left."""
        try:
            await self.stopped()
        finally:
            self._kernels.clear()
            await self._services.close()
