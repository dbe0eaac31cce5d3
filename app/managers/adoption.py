"""Owning again a kernel that another process of the server has started, or left behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from jupyter_client.kernelspec import KernelSpec, NoSuchKernel
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from app.keeper.processes import start_time
from app.managers.channels import Channels, ConnectionInfo
from app.managers.errors import KeeperUnavailable, KernelUnreachable
from app.managers.execution import Execution
from app.managers.execution_records import RegisteredExecutions, restored
from app.managers.fork_provisioner import KernelManager
from app.managers.journal import Journal, UnusableJournal
from app.managers.keeper_provisioner import KeeperProvisioner
from app.managers.keeping import Keeper, Kept
from app.managers.process import bounded, described
from app.managers.recovery import PROBE_SECONDS, Ear, connect, go_on, replay, ring_of
from app.managers.registry_store import KernelRecord
from app.managers.state import Lifecycle
from app.protocol.messages import Message
from app.protocol.signing import Signer

if TYPE_CHECKING:
    from app.managers.kernel import Kernel
    from app.managers.kernel_house import KernelHouse

__all__ = [
    "Gone",
    "adopt_process",
    "find_spec",
    "keep_journal",
    "note_process",
    "record_of",
    "recover",
    "was_being_replaced",
]

logger = logging.getLogger(__name__)

LOAD_SECONDS: Final = 10.0
"""How long a provisioner may take to find its kernel again."""

KEEPER_SECONDS: Final = 45.0
"""How long that may take with the keeper, which may have to be started first."""

LOAD_PAUSES: Final = (0.5, 2.0)
"""Seconds before one that has failed is asked again: what it asks may be starting, too."""

_PROVISIONER: Final = "kernel_provisioner"

HEARING_SECONDS: Final = 2.0
"""How much longer than the server the keeper may take to be connected to a kernel."""


class Gone(Exception):
    """The kernel's process is there no more; the text says what is known of its end."""


# For the next process


def journal_path(house: KernelHouse, kernel_id: str) -> Path:
    """Where is noted how far a kernel's clients are."""
    return house.settings.state_dir / "journals" / f"{kernel_id}.journal"


def keep_journal(house: KernelHouse, kernel: Kernel, channels: Channels) -> None:
    """Begin to note how far its clients are, if the kernel is to outlive this process."""
    traffic = kernel.traffic
    if house.registry is None:
        return
    if traffic.journal is not None:
        traffic.journal.set_identity(channels.identity)
        traffic.journal.replaced = False
        return
    path = journal_path(house, kernel.id)
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        traffic.journal = Journal.create(
            path, traffic.log.epoch, traffic.session, channels.identity
        )
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


async def keeper_hears(keeper: Keeper, manager: KernelManager, probe: Callable[[], None]) -> None:
    """Return when the keeper hears what the kernel publishes, or after `HEARING_SECONDS`.

    Until then a crash would lose it. ``probe`` gives the kernel something to say.
    """
    provisioner = manager.provisioner
    if not isinstance(provisioner, KeeperProvisioner):
        return
    launched: Any = provisioner.process
    heard_before = launched.next if isinstance(launched, Kept) else 1
    loop = asyncio.get_running_loop()
    deadline = loop.time() + HEARING_SECONDS
    with contextlib.suppress(KeeperUnavailable, KeyError):
        while (await keeper.kept())[provisioner.kernel_id].next <= heard_before:
            if loop.time() > deadline:
                logger.warning("kernel %s is not heard by its keeper", provisioner.kernel_id)
                return
            probe()
            await asyncio.sleep(0.02)


# From the process before


def kept_by_keeper(record: KernelRecord) -> bool:
    """Whether the keeper has the kernel's process, and hears what it publishes."""
    return "output" in record.provisioner  # see KeeperProvisioner.get_provisioner_info


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
    house: KernelHouse, kernel: Kernel, record: KernelRecord, info: ConnectionInfo
) -> None:
    """Put the kernel's log, executions and state together again, and open sockets to it.

    Without ``info`` there is no process any more, and no sockets.
    """
    assert house.registry is not None
    traffic, state = kernel.traffic, kernel.state
    log = traffic.log
    await asyncio.to_thread(log.resume)
    journal = await asyncio.to_thread(_read_journal, house, kernel.id)
    if journal is not None and journal.head[0] != log.epoch:
        logger.error("kernel %s: its log is gone, and numbers begin anew", kernel.id)
        journal.remove()
        journal = None
    records = await house.registry.executions(kernel.id)
    keeping = RegisteredExecutions(house.registry, kernel.id)
    executions = []
    for stored in records:
        try:
            executions.append(restored(stored))
            keeping.known(stored)
        except (msgspec.MsgspecError, ValueError) as error:
            logger.warning("kernel %s: a stored execution is left out: %s", kernel.id, error)
    for execution in executions:
        _judge(execution, journal)
    session = journal.head[1] if journal is not None else ""
    starting = record.execution_state in (Lifecycle.STARTING, Lifecycle.RESTARTING)
    traffic.inherit(session, executions, starting=starting)
    kernel.executions.hold_again()
    traffic.last_activity = record.last_activity
    traffic.active_since = time.monotonic() - max(0.0, time.time() - record.last_activity)
    state.reason, state.restarts = record.reason, record.restarts
    if record.execution_state in ("busy", "idle"):
        state.execution_state = record.execution_state
    ear = Ear(traffic)
    channels: Channels | None = None
    earlier: Channels | None = None
    if info:
        channels, earlier, ear = connect(
            lambda listener, **options: house.channels(info, listener, **options),
            traffic,
            journal,
        )
        traffic.hear_with(channels)
        await _be_heard(traffic, ear)
    ring = await _ring(house, kernel.id, record, ear)
    last = await replay(traffic, executions)
    traffic.journal = journal
    before = log.next_seq
    gapless = go_on(traffic, last, ring, ear, whole=record.dead)
    if gapless:
        traffic.heard_all()
    elif not record.dead and before > 1:
        logger.warning("kernel %s: what it said meanwhile is not known", kernel.id)
    traffic.tracker.keeping = keeping
    if channels is not None:
        traffic.go_on(channels, earlier)
        keep_journal(house, kernel, channels)


def _judge(execution: Execution, journal: Journal | None) -> None:
    """Whether a request that waited, as far as the registry knows, is still to be sent.

    Where that is not known it is not: none is sent twice. One that was just being sent keeps its
    request, until it is known whether the kernel has got it.
    """
    if execution.ended or not execution.held:
        return
    was_sent = journal is None or journal.was_sent(execution.id, execution.session)
    if was_sent:
        execution.header = execution.held[0]
    if journal is None or execution.running:
        execution.held = ()
    execution.sent = was_sent


def was_being_replaced(house: KernelHouse, kernel_id: str) -> bool:
    """Whether the server was about to stop the kernel's process, for another to follow."""
    try:
        journal = Journal.open(journal_path(house, kernel_id))
    except UnusableJournal:
        return False
    with contextlib.closing(journal):
        return journal.replaced


def _read_journal(house: KernelHouse, kernel_id: str) -> Journal | None:
    try:
        return Journal.open(journal_path(house, kernel_id))
    except UnusableJournal as error:
        logger.error("kernel %s: how far its clients are is not known: %s", kernel_id, error)
        return None


async def _be_heard(traffic: Any, ear: Ear) -> None:
    """Ask until what the kernel publishes arrives here, for a while."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + PROBE_SECONDS
    pause = 0.02
    traffic.request("shell", "kernel_info_request", {})
    while not ear.heard.is_set() and loop.time() < deadline:
        traffic.request("control", "kernel_info_request", {})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await ear.heard.wait()
        pause = min(pause * 2, 0.5)


async def _ring(
    house: KernelHouse, kernel_id: str, record: KernelRecord, ear: Ear
) -> list[Message] | None:
    """What the keeper has heard; None if it did not listen."""
    if house.keeper is None or record.dead or not kept_by_keeper(record):
        return None
    key = str(record.connection.get("key") or "").encode()
    signer = Signer(key, record.connection.get("signature_scheme") or "hmac-sha256")
    try:
        return await ring_of(house.keeper, kernel_id, signer, lambda: ear.first_published)
    except (KeeperUnavailable, OSError) as error:
        logger.warning("kernel %s: what it said meanwhile is not known: %s", kernel_id, error)
        return None


def is_adoptable(kernel: Kernel) -> bool:
    """Whether the kernel takes requests: it answered, or it is busy and may not be able to."""
    return kernel.traffic.answered or kernel.state.execution_state == "busy"


async def settle_inherited(kernel: Kernel) -> None:
    """Give an end to what the kernel was asked before our time, when it has come to that.

    A kernel that answers on shell has done what it ran; what it still has of before is done in
    turns with our questions, so one that begins nothing between two of them has nothing left.
    """
    traffic = kernel.traffic
    traffic.settle_inherited(all_of_them=False)
    quiet = 0
    while quiet < 2 and kernel.state.lifecycle is Lifecycle.RUNNING:
        began = traffic.begun
        # Without a bound: it may have something to do for hours.
        answer = await traffic.ask("kernel_info_request", {}, 3600.0)
        await asyncio.sleep(0.2)
        if answer is None:
            continue
        if traffic.begun != began:
            quiet = 0
            continue
        quiet += 1
        if kernel.state.busy:  # it went idle when nobody was there to hear it
            kernel.state.execution_state = "idle"
            kernel.state.changes += 1
    if kernel.state.lifecycle is Lifecycle.RUNNING:
        traffic.settle_inherited(all_of_them=True)
        kernel.executions.send_again()


def remove_journal(house: KernelHouse, kernel_id: str) -> None:
    """Nobody will ask for this kernel's numbers."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(journal_path(house, kernel_id))
