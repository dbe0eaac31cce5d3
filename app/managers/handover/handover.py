"""What one server process hands over to the next: its kernels, their executions and clients."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from ...keeper.hearings import Heard
from ...keeper.sockets import ConnectionInfo
from ...log_formats import about
from ..errors import KeeperUnavailable
from ..executions.queue import Executions
from ..log.entries import Position
from ..log.places import Places
from ..messages.traffic import Traffic
from ..processes.isolation.isolation import Isolation
from ..processes.keeper.keepers import Keepers
from ..processes.run_files import KEPT
from ..processes.transports import socket_files
from ..state import KernelState, Lifecycle
from .executions import RegisteredExecutions, restored
from .places import RegisteredPlaces, from_journal, journal_of
from .registry import CLOSE_SECONDS, Registry
from .store import KernelRecord, UnusableRegistry

__all__ = ["Adopt", "HandedOver", "Handover", "LetGo", "RegisteredHandover", "Rest", "settle_loss"]

logger = logging.getLogger(__name__)

CHECKPOINT_SECONDS: Final = 0.25
"""Seconds between two looks at how far clients have come, and at the states of kernels. After a
crash a client may receive again what it received since the look before, until that was stored."""

ADOPTION_SECONDS: Final = 30.0
"""How long a starting server waits until its kernels are adopted; the rest are adopted later."""

AT_A_TIME: Final = 32
"""How many kernels are adopted at the same time."""

LOSS_SECONDS: Final = 0.2
"""Seconds between two `kernel_info_request`s to a kernel that may have lost requests. If the kernel
begins a request of the old keeper in that time, the new keeper hears so."""

Adopt = Callable[[KernelRecord], Awaitable[None]]
Describe = Callable[[], Awaitable[KernelRecord | None]]
Rest = Callable[[], Awaitable[None]]
LetGo = Callable[[str], Rest]


class HandedOver(Protocol):
    """What `Handover` needs of a kernel."""

    @property
    def id(self) -> str:
        """The kernel's id."""

    @property
    def model(self) -> bytes:
        """The kernel model as JSON."""

    @property
    def traffic(self) -> Traffic:
        """The kernel's messages."""

    @property
    def state(self) -> KernelState:
        """The kernel's state."""

    @property
    def executions(self) -> Executions:
        """The kernel's executions."""

    @property
    def is_left(self) -> bool:
        """Whether an earlier server has left the kernel, and this one could not reach it yet."""


class Handover:
    """The handover of a server that has no successor: no kernel is stored, and none is adopted."""

    hands_over = False
    """Whether kernels go on for another server."""

    let_go: LetGo
    """Called with the id of a kernel that another replica has taken. When it returns, no request
    finds the kernel here; the function that it returns then leaves process and log to that replica.
    """

    def __init__(self) -> None:
        self.adopting: set[str] = set()
        """The ids of the kernels that an earlier server has left, and that are not adopted yet."""

    async def adopt(self, one: Adopt) -> None:
        """Have ``one`` adopt each kernel that an earlier server has left.

        Returns when all are adopted, or after `ADOPTION_SECONDS`.
        """

    def watch(self, kernels: Iterable[HandedOver]) -> None:
        """Store from now on, every `CHECKPOINT_SECONDS`, what has changed of these kernels.

        That is the state of each, its last activity, and the places of its clients.
        """

    def begin(self, kernel: HandedOver) -> None:
        """Store from now on the places of the kernel's clients, and its executions."""

    async def save(self, kernel_id: str, describe: Describe) -> None:
        """Store the kernel's record, which ``describe`` returns, unless it is None."""

    def check_saved(self, kernel_id: str) -> None:
        """Raise an error if a kernel that was just started may not be in the registry."""

    async def delete(self, kernel_id: str) -> None:
        """Remove the kernel's record, so that the next server does not know the kernel."""

    async def forget(self, kernel: HandedOver) -> None:
        """Remove what is stored of a kernel that is gone, and store nothing more of it."""

    async def furthest(self, kernel_id: str) -> Position:  # noqa: ARG002
        """The furthest place in the kernel's log that one of its clients is known to have read."""
        return Position(1, 0)

    async def recover(
        self,
        kernel: HandedOver,
        record: KernelRecord,
        info: ConnectionInfo,
        heard: Heard | None = None,
    ) -> Heard:
        """Put back a kernel's executions and state, and read its log.

        Returns what the keeper tells of the kernel's log and sockets.

        ``info`` is empty if the kernel has no process any more. ``heard`` is what `Traffic.meet`
        has returned; without it `Traffic.meet` is called here, and what that raises is raised.
        """
        raise NotImplementedError("a server without a registry adopts no kernels")

    async def hand_over(self, kernel_ids: Collection[str]) -> Collection[str]:
        """Let other replicas, if there are any, adopt these kernels, which have all been left.

        Returns the ids of the kernels that are handed over. The others stay this server's, as not
        everything is stored yet that the next server needs of them. Call `close` before. May raise
        what the registry raises.
        """
        return kernel_ids

    async def hand_over_rest(self) -> None:
        """Let other replicas adopt all kernels that are still this server's."""

    async def close(self) -> None:
        """Store no further changes, and adopt no further kernels."""


class RegisteredHandover(Handover):
    """The handover by the registry.

    Make it inside a running event loop, and `close` it there.
    """

    hands_over = True

    def __init__(
        self, registry: Registry, keepers: Keepers, state_dir: Path, isolation: Isolation
    ) -> None:
        super().__init__()
        self._registry = registry
        self._state_dir = state_dir
        self._keepers = keepers
        self._isolation = isolation
        self._room = asyncio.Semaphore(AT_A_TIME)
        self._tasks: set[asyncio.Task[None]] = set()
        self._left: dict[str, Places] = {}  # read by `furthest`, until `recover` needs them

    # Taking over from the server before

    async def adopt(self, one: Adopt) -> None:
        """As `Handover.adopt`."""
        # Leftovers, which are processes and files of kernels without a record, are ended and
        # removed before any kernel is adopted or started here: no kernel of this server is mistaken
        # for a leftover.
        records = await self._registry.load()
        known = {record.id for record in records}
        await self._end_unknown(known)
        if not self._registry.put_aside:
            # Keepers on other hosts are asked when their kernels are adopted, or later.
            self._keepers.remote.is_stored = known.__contains__
            await asyncio.to_thread(_remove_leftovers, self._state_dir, known)
            await asyncio.to_thread(self._isolation.remove_leftovers, known)
        if not records:
            return
        loop = asyncio.get_running_loop()
        began = loop.time()
        self.adopting |= known
        tasks = {self._do(self._adopt(one, record)) for record in records}
        _, late = await asyncio.wait(tasks, timeout=ADOPTION_SECONDS)
        logger.info("%d kernels adopted in %.2f s", len(records) - len(late), loop.time() - began)

    def _do(self, what: Coroutine[Any, Any, None], name: str = "handover") -> asyncio.Task[None]:
        """Begin a task that `close` cancels."""
        task = asyncio.get_running_loop().create_task(what, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _adopt(self, one: Adopt, record: KernelRecord) -> None:
        # A kernel that cannot be adopted keeps its record: the next server tries again, and until
        # then neither its process is ended nor its log removed.
        async with self._room:
            try:
                await one(record)
            except Exception:
                about(logger, kernel_id=record.id).exception(
                    "kernel %s could not be adopted; it is left alone", record.id
                )
            finally:
                self.adopting.discard(record.id)

    async def _end_unknown(self, known: Collection[str]) -> None:
        """End the keepers' kernels that no record has.

        No client has used them: they were parked as warm kernels, or the server ended before it had
        stored them. If the registry was put aside, they are left alone: they may be kernels that
        it has a record of.
        """
        # No kernel that this server launches can be among them: its first kernel is started only
        # when `adopt` has returned.
        try:
            kept = await self._keepers.kept()
            for kernel_id in kept.keys() - known:
                if self._registry.put_aside:
                    about(logger, kernel_id=kernel_id).warning(
                        "kernel %s runs, unknown to this server", kernel_id
                    )
                    continue
                if kept[kernel_id].exit_code is None:
                    about(logger, kernel_id=kernel_id).info(
                        "kernel %s was nobody's, and is killed", kernel_id
                    )
                await self._keepers.end(kernel_id)
                self._keepers.drop(kernel_id)
                connection = self._state_dir / "runtime" / f"kernel-{kernel_id}.json"
                files = [
                    connection,
                    self._state_dir / "output" / f"kernel-{kernel_id}.log",
                    *socket_files(_read(connection)),
                ]
                for file in files:
                    file.unlink(missing_ok=True)
        except KeeperUnavailable as error:
            logger.error("it is not known which kernels were left: %s", error)

    async def recover(
        self,
        kernel: HandedOver,
        record: KernelRecord,
        info: ConnectionInfo,
        heard: Heard | None = None,
    ) -> Heard:
        """As `Handover.recover`."""
        # The log goes on while this runs, and a client may be there. No store is set before the log
        # has been read, and requests wait in the outbox until the kernel counts as ready: so
        # nothing is sent, and nothing stored, before the executions and the place in the log are
        # put back.
        traffic, state = kernel.traffic, kernel.state
        if heard is None:
            heard = await traffic.meet(info or None, await self.furthest(kernel.id))
        store = RegisteredExecutions(self._registry, kernel.id)
        executions = []
        for stored in await self._registry.executions(kernel.id):
            try:
                executions.append(restored(stored))
                store.known(stored)
            except (msgspec.MsgspecError, ValueError) as error:
                about(logger, kernel_id=kernel.id).warning(
                    "kernel %s: a stored execution is left out: %s", kernel.id, error
                )
        traffic.activity.last = record.last_activity
        traffic.activity.idle_since = time.monotonic() - max(
            0.0, time.time() - record.last_activity
        )
        state.reason, state.restarts = record.reason, record.restarts
        if record.execution_state in ("busy", "idle"):
            state.execution_state = record.execution_state
        traffic.put_back(executions)
        # A queued execution waits behind others, and the log may hold the ends of those. So the
        # queue is put back before the log is read: no such end is missed.
        kernel.executions.hold_again()
        await traffic.resume(heard)
        self._put_places_back(kernel)
        # Set only now: what the replay has concluded is not stored, for another server would
        # conclude the same from the log.
        traffic.tracker.store = store
        if info:
            self.begin(kernel)
        if heard.again:
            about(logger, kernel_id=kernel.id).warning(
                "kernel %s: what it has said meanwhile is not known", kernel.id
            )
        return heard

    async def furthest(self, kernel_id: str) -> Position:
        """As `Handover.furthest`."""
        self._left.pop(kernel_id, None)  # of an adoption that was tried before
        try:
            left = await self._registry.places(kernel_id)
        except UnusableRegistry:
            return Position(1, 0)
        if left is None:
            left = await self._from_journal(kernel_id)
        try:
            furthest = Position(1, 0) if left is None else left.furthest
        except msgspec.MsgspecError as error:
            about(logger, kernel_id=kernel_id).error(
                "kernel %s: how far its clients are is not known: %s", kernel_id, error
            )
            return Position(1, 0)
        if left is not None:
            self._left[kernel_id] = left
        return furthest

    async def _from_journal(self, kernel_id: str) -> Places | None:
        path = journal_of(self._state_dir, kernel_id)
        found = await asyncio.to_thread(from_journal, path, kernel_id)
        if found is not None:
            self._registry.note_places(kernel_id, lambda: found)
        return found

    def _put_places_back(self, kernel: HandedOver) -> None:
        """Have clients that come back go on where they were under the server before."""
        self._begin_places(kernel)
        left, clients = self._left.pop(kernel.id, None), kernel.traffic.clients
        if left is None:
            return
        if left.epoch == kernel.traffic.log.epoch:
            clients.put_back(left.read())
            return
        about(logger, kernel_id=kernel.id).error(
            "kernel %s: its log is gone, and numbers begin anew", kernel.id
        )
        clients.note_again()

    def _begin_places(self, kernel: HandedOver) -> None:
        traffic = kernel.traffic
        traffic.clients.store = RegisteredPlaces(
            self._registry, kernel.id, traffic.log, traffic.clients
        )

    # Storing for the next server

    def watch(self, kernels: Iterable[HandedOver]) -> None:
        """As `Handover.watch`."""
        self._do(self._checkpoint(kernels), "checkpoints")

    async def _checkpoint(self, kernels: Iterable[HandedOver]) -> None:
        while True:
            await asyncio.sleep(CHECKPOINT_SECONDS)
            # Most kernels are idle, and their clients have read all of the log. This loop is most
            # of what a server with thousands of such kernels does, so it looks at these two facts
            # only. It awaits nothing, so that no kernel comes or goes while it runs.
            for kernel in kernels:
                state, clients = kernel.state, kernel.traffic.clients
                if state.changes == state.noted and (not clients.attached or clients.at_rest):
                    continue
                # The record stays as the earlier server has written it. `noted` stays, too, so that
                # the change is written once the kernel is reached.
                if kernel.is_left:
                    continue
                clients.note_places()
                if state.changes != state.noted:
                    state.noted = state.changes
                    activity = kernel.traffic.activity.last
                    model = kernel.model if self._registry.has_models else b""
                    self._registry.touch(kernel.id, activity, state.last_word, model)

    def begin(self, kernel: HandedOver) -> None:
        """As `Handover.begin`."""
        traffic = kernel.traffic
        if traffic.clients.store is None:
            self._begin_places(kernel)
        if traffic.tracker.store is None:
            store = RegisteredExecutions(self._registry, kernel.id)
            traffic.tracker.store = store
            for execution in traffic.tracker:  # executions older than the first process
                store.changed(execution)

    async def save(self, kernel_id: str, describe: Describe) -> None:
        """As `Handover.save`. A failure is logged: the next server will not know the kernel."""
        try:
            record = await describe()
            if record is not None:
                await self._registry.save(record)
        except Exception:  # a provisioner may raise anything
            about(logger, kernel_id=kernel_id).exception(
                "kernel %s: the next server will not know it", kernel_id
            )

    async def delete(self, kernel_id: str) -> None:
        """As `Handover.delete`."""
        await self._registry.delete(kernel_id)

    async def forget(self, kernel: HandedOver) -> None:
        """As `Handover.forget`."""
        # Before the first await: an execution that ends while the record is being deleted, or a
        # client that leaves, would be stored again, under a kernel that is not there.
        kernel.traffic.tracker.store = None
        kernel.traffic.clients.store = None
        # A write that a flush has already taken is done before the deletion: both run in the
        # registry's thread, in the order in which they were asked for.
        await self._registry.delete(kernel.id)
        journal_of(self._state_dir, kernel.id).unlink(missing_ok=True)

    async def close(self) -> None:
        """As `Handover.close`."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
            if late:
                logger.error("%d tasks of the handover do not end", len(late))


async def settle_loss(traffic: Traffic, state: KernelState) -> None:
    """End the requests that a kernel has never received.

    A keeper that is killed loses the requests that it had just given to its sockets. To find them,
    the server asks the kernel on shell. The kernel's socket takes turns between the old keeper's
    connection and the new one's, so one reply does not tell that the old keeper's requests are
    done. Two replies do, if the kernel has begun no other request between them.
    """
    ends = traffic.ends
    ends.has_loss = True
    # Another keeper may be killed while this waits for the kernel. `in_doubt` clears `has_loss`, so
    # a loss that comes after that call is seen when the loop looks at `has_loss` again.
    while ends.has_loss:
        lost = ends.in_doubt()
        if not await _is_done(traffic, state):
            return
        # The kernel has replied to all requests; but the keeper holds a reply back until it has
        # read the output that belongs before the reply, of which there may be much.
        if traffic.own.tells_control:
            await traffic.own.catch_up()
        if state.lifecycle is not Lifecycle.RUNNING:
            return
        ends.end_lost(lost)


async def _is_done(traffic: Traffic, state: KernelState) -> bool:
    """Return True when the kernel has done all requests sent until now; False if it is gone."""
    quiet = 0
    while quiet < 2 and state.lifecycle is Lifecycle.RUNNING:
        began = traffic.activity.begun
        # The loop has no bound: an execution may run for many hours before the kernel replies.
        answer = await traffic.own.ask("kernel_info_request", {}, 3600.0)
        await asyncio.sleep(LOSS_SECONDS)
        if answer is not None:
            quiet = quiet + 1 if traffic.activity.begun == began else 0
    if state.lifecycle is not Lifecycle.RUNNING:
        return False
    if state.busy:  # the kernel went idle while no keeper heard it
        state.execution_state = "idle"
        state.changes += 1
    return True


def _read(connection_file: Path) -> dict[str, Any]:
    """The content of a connection file; an empty dict if it is gone, or was not written whole."""
    try:
        info = json.loads(connection_file.read_text())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _remove_leftovers(state_dir: Path, known: Collection[str]) -> None:
    """Remove the logs of kernels that no record has: they ended with a server."""
    for path in (state_dir / "logs" / KEPT).glob("*"):
        if path.name not in known:
            shutil.rmtree(path, ignore_errors=True)
    for path in journal_of(state_dir, "").parent.glob("*"):
        if path.stem not in known:
            path.unlink(missing_ok=True)
