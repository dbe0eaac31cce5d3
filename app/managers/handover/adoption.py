"""Finding again the process of a kernel that an earlier server has left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Mapping
from typing import Any, Final

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel
from jupyter_client.provisioning.factory import KernelProvisionerFactory
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from ...keeper.processes import start_time
from ...keeper.sockets import ConnectionInfo
from ...log_formats import about
from ..errors import KernelUnreachable
from ..processes.engines.provisioner import JobEnded
from ..processes.forking.provisioner import KernelManager
from ..processes.jupyter_internals import mark_connection_file
from ..processes.keeper.provisioner import KeeperProvisioner
from ..processes.launch_errors import described
from ..processes.process import bounded
from .store import KernelRecord

__all__ = ["Gone", "adopt_process", "find_spec", "note_process"]

logger = logging.getLogger(__name__)

LOAD_SECONDS: Final = 10.0
"""How long a provisioner may take to find its kernel again."""

KEEPER_SECONDS: Final = 45.0
"""How long kernelkeep's own provisioners may take for the same: a keeper may have to be started."""

LOAD_PAUSES: Final = (0.5, 2.0)
"""Seconds before a provisioner that has failed is asked again: its service may be starting, as this
server is, when the machine has just come up. Both are within `LOAD_SECONDS`."""

_PROVISIONER: Final = "kernel_provisioner"


class Gone(Exception):
    """The kernel's process has ended; the text tells how, as far as that is known.

    ``code`` is the exit code as `Exit` has it, or None if it is not known.
    """

    def __init__(self, text: str, code: int | None = None) -> None:
        super().__init__(text)
        self.code = code


async def note_process(record: KernelRecord, manager: KernelManager, info: ConnectionInfo) -> None:
    """Add to a record what the next server needs to adopt the kernel's process.

    Raises whatever the provisioner raises, and `TimeoutError` if it does not answer in time.
    """
    provisioner = manager.provisioner
    assert provisioner is not None
    record.connection = _plain(info)
    record.connection_file = manager.connection_file
    record.provisioner = _plain(await bounded(provisioner.get_provisioner_info()))
    record.pid = pid = getattr(provisioner, "pid", None)
    record.start_time = (start_time(pid) or "") if isinstance(pid, int) else ""


def _plain(value: Any) -> Any:
    """A value as JSON has it: the key of a connection is bytes in some places, text in others."""
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value


# Taking over from the server before


async def find_spec(specs: KernelSpecManager, record: KernelRecord) -> KernelSpec:
    """The kernelspec of a recorded kernel: as it is on disk now, or else as the record has it.

    The record's is taken if the file cannot be read any more, or if it now names another
    provisioner or other options for the provisioner (defaults from the settings count as well): the
    running process belongs to the provisioner that launched it, whatever the file says now.
    """
    saved = KernelSpec(**record.spec)
    try:
        spec = await asyncio.to_thread(specs.get_kernel_spec, record.name)
        if spec.metadata.get(_PROVISIONER) == saved.metadata.get(_PROVISIONER):
            return spec
        why = "it names another provisioner, or the options of that are others by now"
    except NoSuchKernel:
        return saved
    except Exception as error:  # whatever a file can hold, and a disk can do
        why = described(error)
    about(logger, kernel_id=record.id).warning(
        "kernel %s: its kernelspec %s is used as it was: %s", record.id, record.name, why
    )
    return saved


async def adopt_process(
    record: KernelRecord, manager: KernelManager, loading: dict[str, threading.Thread]
) -> ConnectionInfo:
    """Connect a manager that has launched nothing to the running process of a recorded kernel.

    ``loading`` has the threads in which provisioners may block, by kernel id. Returns the kernel's
    connection information. Raises `Gone` if the process is known to have ended, and
    `KernelUnreachable` if that is not known: the process may still run.
    """
    if not record.provisioner:
        raise Gone("The kernel had no process")
    if record.connection_file:  # it may be elsewhere for a new process
        manager.connection_file = record.connection_file
    manager.load_connection_info(record.connection)  # type: ignore[arg-type]
    written = await asyncio.to_thread(os.path.exists, manager.connection_file)
    mark_connection_file(manager, written=written)
    provisioner = manager.provisioner
    try:
        if provisioner is None:
            provisioner = KernelProvisionerFactory.instance().create_provisioner_instance(
                record.id, manager.kernel_spec, parent=manager
            )
            manager.provisioner = provisioner
        # kernelkeep's own provisioners ask the keeper over the loop's connection, and never block.
        # Provisioners of other packages may (`_load`).
        if isinstance(provisioner, KeeperProvisioner):
            await bounded(provisioner.load_provisioner_info(record.provisioner), KEEPER_SECONDS)
        else:
            async with asyncio.timeout(LOAD_SECONDS):
                await _find_again(provisioner, record, loading)
    except JobEnded as error:
        raise Gone(f"The kernel's process ended while no server was there: {error}") from None
    except ProcessLookupError:
        raise Gone("The kernel's process ended while no server was there") from None
    # Only an error that says that the process itself has ended is taken for its end. After any
    # other error, such as a bug in the provisioner, the process counts as running: it may hold a
    # user's work.
    except Exception as error:
        raise KernelUnreachable(
            f"The kernel could not be found again: {described(error)}"
        ) from error
    return {**record.connection, **_plain(provisioner.connection_info or {})}


async def _find_again(
    provisioner: KernelProvisionerBase, record: KernelRecord, loading: dict[str, threading.Thread]
) -> None:
    """Have a provisioner find its kernel, trying again after each of `LOAD_PAUSES`.

    Raises `ProcessLookupError` at once, and what the last attempt raised.
    """
    for pause in LOAD_PAUSES:
        try:
            await _load(provisioner, record, loading)
            return
        except ProcessLookupError:
            raise
        except Exception as error:
            about(logger, kernel_id=record.id).warning(
                "kernel %s: %s: %s", record.id, type(error).__name__, error
            )
        await asyncio.sleep(pause)
    await _load(provisioner, record, loading)


async def _load(
    provisioner: KernelProvisionerBase, record: KernelRecord, loading: dict[str, threading.Thread]
) -> None:
    """Call a provisioner's ``load_provisioner_info`` in a thread of the kernel's own.

    The call may block, as many provisioners do that ask other machines. In the loop's pool, a call
    that never returns would take a thread from everybody. Raises `TimeoutError` while ``loading``
    has a thread of this kernel that runs.
    """
    before = loading.get(record.id)
    # One call at a time: a provisioner need not stand two, and while one hangs each attempt would
    # add another thread that hangs.
    if before is not None and before.is_alive():
        raise TimeoutError("its provisioner has not answered yet")
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        # The thread may end after the adoption was given up, which has cancelled the future. Both
        # the cancellation and this function run on the loop, so neither comes between the check and
        # the result.
        if done.done():
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
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server has ended
            loop.call_soon_threadsafe(settle, error)

    loading[record.id] = threading.Thread(target=load, name=f"load {record.id}", daemon=True)
    loading[record.id].start()
    try:
        await done
    finally:
        # A cancelled future says that the wait was cut short: the thread still runs, and stays in
        # `loading`.
        if not done.cancelled():
            del loading[record.id]
