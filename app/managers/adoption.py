"""Owning again a kernel that another process of the server has started, or left behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from jupyter_client.kernelspec import KernelSpec, NoSuchKernel
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from app.keeper.hearings import Heard
from app.keeper.processes import start_time
from app.keeper.sockets import ConnectionInfo
from app.managers.entries import Position
from app.managers.errors import KernelUnreachable
from app.managers.execution_records import RegisteredExecutions, restored
from app.managers.fork_provisioner import KernelManager
from app.managers.journal import Journal, UnusableJournal
from app.managers.keeper_provisioner import KeeperProvisioner
from app.managers.process import bounded, described
from app.managers.registry_store import KernelRecord
from app.managers.state import Lifecycle

if TYPE_CHECKING:
    from app.managers.kernel import Kernel
    from app.managers.kernel_house import KernelHouse

__all__ = [
    "Gone",
    "adopt_process",
    "find_spec",
    "furthest",
    "keep_journal",
    "note_process",
    "record_of",
    "recover",
    "settle_loss",
    "was_being_replaced",
]

logger = logging.getLogger(__name__)

LOAD_SECONDS: Final = 10.0
"""How long a provisioner may take to find its kernel again."""

KEEPER_SECONDS: Final = 45.0
"""How long that may take with the keeper, which may have to be started first."""

LOSS_SECONDS: Final = 0.2
"""Between two questions to a kernel that may have lost what it was asked."""

LOAD_PAUSES: Final = (0.5, 2.0)
"""Seconds before one that has failed is asked again: what it asks may be starting, too."""

_PROVISIONER: Final = "kernel_provisioner"


class Gone(Exception):
    """The kernel's process is there no more; the text says what is known of its end."""


# For the next process


def journal_path(house: KernelHouse, kernel_id: str) -> Path:
    """Where is noted how far a kernel's clients are."""
    return house.settings.state_dir / "journals" / f"{kernel_id}.journal"


def keep_journal(house: KernelHouse, kernel: Kernel) -> None:
    """Begin to note how far its clients are, if the kernel is to outlive this process."""
    traffic = kernel.traffic
    if house.registry is None:
        return
    if traffic.journal is not None:
        traffic.journal.replaced = False
        return
    path = journal_path(house, kernel.id)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        traffic.journal = Journal.create(path, traffic.log.epoch)
    except (OSError, UnusableJournal) as error:
        logger.error("kernel %s: a crash loses how far clients are: %s", kernel.id, error)
    if kernel.traffic.tracker.keeping is None:
        keeping = RegisteredExecutions(house.registry, kernel.id)
        kernel.traffic.tracker.keeping = keeping
        for execution in kernel.traffic.tracker:  # what was asked before there was a process
            keeping.changed(execution)


def record_of(
    kernel: Kernel, *, cwd: Path, env: Mapping[str, str], created: float, generation: int
) -> KernelRecord:
    """What the next process needs to know of the kernel; of its process, if any, see below."""
    return KernelRecord(
        id=kernel.id,
        name=kernel.name,
        spec={**kernel.spec.to_dict(), "resource_dir": kernel.spec.resource_dir},
        connection={},
        connection_file="",
        provisioner={},
        argv=list(kernel.spec.argv),
        cwd=str(cwd),
        env=dict(env),
        pid=None,
        start_time="",
        created=created,
        last_activity=kernel.traffic.last_activity,
        generation=generation,
        execution_state=kernel.state.word,
        reason=kernel.state.reason,
        exclusive=True,
        external=False,
        restarts=kernel.state.restarts,
    )


async def note_process(record: KernelRecord, manager: KernelManager, info: ConnectionInfo) -> None:
    """Add what the next process needs to own this one's again. Raises what a provisioner does."""
    provisioner = manager.provisioner
    assert provisioner is not None
    record.connection = _plain(info)
    record.connection_file = manager.connection_file
    record.provisioner = _plain(await bounded(provisioner.get_provisioner_info()))
    record.pid = pid = getattr(provisioner, "pid", None)
    record.start_time = (start_time(pid) or "") if isinstance(pid, int) else ""


def _plain(value: Any) -> Any:
    """As JSON has it: keys of kernels are bytes in some places and text in others."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value


# From the process before


async def find_spec(house: KernelHouse, record: KernelRecord) -> KernelSpec:
    """The kernelspec as it is now, or as it was.

    That is where it cannot be read any more, or names another provisioner: the process that runs
    is its provisioner's, whatever has become of the kernelspec meanwhile.
    """
    saved = KernelSpec(**record.spec)
    try:
        spec = await asyncio.to_thread(house.specs.get_kernel_spec, record.name)
        if spec.metadata.get(_PROVISIONER) == saved.metadata.get(_PROVISIONER):
            return spec
        why = "it names another provisioner"
    except NoSuchKernel:
        return saved
    except Exception as error:  # whatever a file can hold, and a disk can do
        why = described(error)
    logger.warning(
        "kernel %s: its kernelspec %s is used as it was: %s", record.id, record.name, why
    )
    return saved


async def adopt_process(
    record: KernelRecord, manager: KernelManager, loading: dict[str, threading.Thread]
) -> ConnectionInfo:
    """Make a manager that was not started that of a process which runs; how to connect to it.

    ``loading`` has the threads of provisioners that block. Raises `Gone` where the process is known
    to have ended, and `KernelUnreachable` where that cannot be told: it may run.
    """
    if not record.provisioner:
        raise Gone("The kernel had no process")
    manager.load_connection_info(record.connection)  # type: ignore[arg-type]
    manager._connection_file_written = await asyncio.to_thread(
        os.path.exists, manager.connection_file
    )
    provisioner = manager.provisioner
    try:
        if provisioner is None:
            provisioner = KernelProvisionerFactory.instance().create_provisioner_instance(
                record.id, manager.kernel_spec, parent=manager
            )
            manager.provisioner = provisioner
        if isinstance(provisioner, KeeperProvisioner):
            await bounded(provisioner.load_provisioner_info(record.provisioner), KEEPER_SECONDS)
        else:
            async with asyncio.timeout(LOAD_SECONDS):
                await _find_again(provisioner, record, loading)
    except ProcessLookupError:
        raise Gone("The kernel's process ended while no server was there") from None
    except Exception as error:
        raise KernelUnreachable(
            f"The kernel could not be found again: {described(error)}"
        ) from error
    return {**record.connection, **_plain(provisioner.connection_info or {})}


async def _find_again(
    provisioner: KernelProvisionerBase, record: KernelRecord, loading: dict[str, threading.Thread]
) -> None:
    """Have a provisioner find its kernel. Raises what it does, the last time."""
    for pause in LOAD_PAUSES:
        try:
            await _load(provisioner, record, loading)
            return
        except ProcessLookupError:
            raise
        except Exception as error:
            logger.warning("kernel %s: %s: %s", record.id, type(error).__name__, error)
        await asyncio.sleep(pause)
    await _load(provisioner, record, loading)


async def _load(
    provisioner: KernelProvisionerBase, record: KernelRecord, loading: dict[str, threading.Thread]
) -> None:
    """What a provisioner does for that may block, as many do that ask other machines.

    It has a thread of its own: one that never comes back would take the loop's from everybody. No
    kernel has two.
    """
    before = loading.get(record.id)
    if before is not None and before.is_alive():
        raise TimeoutError("its provisioner has not answered yet")
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.done():  # nobody waits any more
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def load() -> None:
        error: BaseException | None = None
        try:
            asyncio.run(provisioner.load_provisioner_info(dict(record.provisioner)))
        except BaseException as raised:
            error = raised
        with contextlib.suppress(RuntimeError):  # the server has ended
            loop.call_soon_threadsafe(settle, error)

    loading[record.id] = threading.Thread(target=load, name=f"load {record.id}", daemon=True)
    loading[record.id].start()
    try:
        await done
    finally:
        if not loading[record.id].is_alive() or done.done():
            del loading[record.id]


async def recover(
    house: KernelHouse,
    kernel: Kernel,
    record: KernelRecord,
    info: ConnectionInfo,
    heard: Heard | None = None,
) -> Heard:
    """Read the kernel's log, and know its executions and state; how the kernel is heard.

    Without ``info`` there is no process any more. Raises what `Traffic.meet` does, if nobody has
    ``heard`` the kernel yet.
    """
    assert house.registry is not None
    traffic, state = kernel.traffic, kernel.state
    if heard is None:
        known = await asyncio.to_thread(furthest, house, kernel.id)
        heard = await traffic.meet(info or None, known)
    keeping = RegisteredExecutions(house.registry, kernel.id)
    executions = []
    for stored in await house.registry.executions(kernel.id):
        try:
            executions.append(restored(stored))
            keeping.known(stored)
        except (msgspec.MsgspecError, ValueError) as error:
            logger.warning("kernel %s: a stored execution is left out: %s", kernel.id, error)
    traffic.last_activity = record.last_activity
    traffic.active_since = time.monotonic() - max(0.0, time.time() - record.last_activity)
    state.reason, state.restarts = record.reason, record.restarts
    if record.execution_state in ("busy", "idle"):
        state.execution_state = record.execution_state
    traffic.put_back(executions)
    kernel.executions.hold_again()  # what it waits behind may end in what is read next
    await traffic.resume(heard)
    traffic.journal = await asyncio.to_thread(_read_journal, house, kernel.id, traffic.log.epoch)
    traffic.tracker.keeping = keeping
    if info:
        keep_journal(house, kernel)
    if heard.again:
        logger.warning("kernel %s: what it has said meanwhile is not known", kernel.id)
    return heard


async def settle_loss(kernel: Kernel) -> None:
    """Give an end to what the kernel has never got, when it has come to that.

    What a keeper had just given to its sockets when it was killed is lost. A kernel that answers on
    shell has done what it ran; what it still has of before is done in turns with our questions, so
    one that begins nothing between two of them has nothing left.
    """
    traffic = kernel.traffic
    traffic.has_loss = True
    while traffic.has_loss:  # or more is lost meanwhile
        lost = traffic.in_doubt()
        if not await _is_done(kernel):
            return
        traffic.end_lost(lost)


async def _is_done(kernel: Kernel) -> bool:
    """Return when the kernel has done what it was asked until now; False if it is gone."""
    traffic = kernel.traffic
    quiet = 0
    while quiet < 2 and kernel.state.lifecycle is Lifecycle.RUNNING:
        began = traffic.begun
        # Without a bound: it may have something to do for hours.
        answer = await traffic.ask("kernel_info_request", {}, 3600.0)
        await asyncio.sleep(LOSS_SECONDS)
        if answer is not None:
            quiet = quiet + 1 if traffic.begun == began else 0
    if kernel.state.lifecycle is not Lifecycle.RUNNING:
        return False
    if kernel.state.busy:  # it went idle when nobody was there to hear it
        kernel.state.execution_state = "idle"
        kernel.state.changes += 1
    return True


def was_being_replaced(house: KernelHouse, kernel_id: str) -> bool:
    """Whether the server was about to stop the kernel's process, for another to follow."""
    try:
        journal = Journal.open(journal_path(house, kernel_id))
    except UnusableJournal:
        return False
    with contextlib.closing(journal):
        return journal.replaced


def furthest(house: KernelHouse, kernel_id: str) -> Position:
    """How far a client of the kernel's has come, as far as is known."""
    try:
        journal = Journal.open(journal_path(house, kernel_id))
    except UnusableJournal:  # which is told when the places are needed
        return Position(1, 0)
    with contextlib.closing(journal):
        return journal.furthest


def _read_journal(house: KernelHouse, kernel_id: str, epoch: str) -> Journal | None:
    try:
        journal = Journal.open(journal_path(house, kernel_id))
    except UnusableJournal as error:
        logger.error("kernel %s: how far its clients are is not known: %s", kernel_id, error)
        return None
    if journal.epoch == epoch:
        return journal
    logger.error("kernel %s: its log is gone, and numbers begin anew", kernel_id)
    journal.remove()
    return None


def remove_journal(house: KernelHouse, kernel_id: str) -> None:
    """Nobody will ask for this kernel's numbers."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(journal_path(house, kernel_id))
