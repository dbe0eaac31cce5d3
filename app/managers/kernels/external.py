"""External kernels: started by other programs, found by their connection files in a directory.

They are listed and can be used, but their processes are not this server's: deleting an external
kernel only forgets it. It is forgotten, too, when its file is removed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
from collections.abc import Container, MutableMapping, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from jupyter_client.kernelspec import KernelSpec
from jupyter_core.paths import jupyter_runtime_dir

from ...keeper.sockets import ConnectionInfo
from ...log_formats import about
from ..errors import (
    InvalidPath,
    KeeperUnavailable,
    KernelNotRunning,
    KernelUnreachable,
)
from ..handover.store import KernelRecord
from ..owners.ownership import Ownership
from ..state import Lifecycle
from .kernel import Kernel, OnGone
from .phases import Event, Phase
from .services import KernelServices

__all__ = [
    "ExternalKernel",
    "ExternalKernels",
    "find_connection_file",
    "find_connection_files",
    "is_near",
]

logger = logging.getLogger(__name__)

FAREWELL_SECONDS: Final = 0.2
"""Seconds for a ``shutdown_request`` to leave; whether the kernel heeds it cannot be seen."""

FILE_GONE: Final = "Its connection file is gone, or is another one"

MAX_FILE_BYTES: Final = 65536
_PORTS: Final = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
_TEXTS: Final = ("kernel_name", "key", "ip")
_OPTIONAL: Final = ("signature_scheme", "curve_publickey", "curve_secretkey")


def find_connection_files(directory: Path) -> dict[Path, dict[str, Any]]:
    """The usable connection files in ``directory``, with their contents.

    A file is usable if it names its kernel and has a key; other files are passed over.
    """
    found = {}
    try:
        files = sorted(directory.glob("*.json"))
    except OSError:
        return {}
    for file in files:
        info = _read(file)
        if info is not None:
            found[file] = info
    return found


def find_connection_file(directory: Path, name: str) -> tuple[Path, dict[str, Any]]:
    """The path and content of one connection file, given by its name or its whole path.

    Raises `InvalidPath` for a file in any other directory, and for one that is not usable. The
    error does not tell which: it would tell what files there are elsewhere.
    """
    try:
        file = directory / name
        is_there = file.parent.resolve() == directory.resolve() and file.suffix == ".json"
        info = _read(directory / file.name) if is_there else None
    except (OSError, ValueError, RuntimeError):  # a NUL, a name too long, a loop of links
        info = None
    if info is None:
        raise InvalidPath("connection_file: not a usable file in the directory for such files")
    return directory / file.name, info


def _read(file: Path) -> dict[str, Any] | None:
    """The content of a usable connection file: one of this user or of root, and no link."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait until another process opens it to write.
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(file, flags), "rb") as opened:
            status = os.fstat(opened.fileno())
            own = status.st_uid in (0, os.geteuid())
            if not own or not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
                return None
            info = json.loads(opened.read(MAX_FILE_BYTES + 1))
    except (OSError, ValueError, RecursionError):
        return None
    return info if _is_usable(info) else None


def _is_usable(info: object) -> bool:
    return (
        isinstance(info, dict)
        and all(info.get(name) and isinstance(info[name], str) for name in _TEXTS)
        and info.get("transport") in ("tcp", "ipc")
        and all(_is_port(info.get(name)) for name in _PORTS)
        and all(isinstance(info.get(name, ""), str) for name in _OPTIONAL)
    )


def is_near(info: ConnectionInfo, networks: Sequence[str]) -> bool:
    """Whether the kernel is on this machine, or at an address of one of the networks.

    A host name is not: it could mean another address each time that it is looked up.
    """
    if info["transport"] == "ipc" or info["ip"] == "localhost":
        return True
    try:
        address = ip_address(info["ip"])
    except ValueError:
        return False
    return address.is_loopback or any(address in ip_network(network) for network in networks)


def _is_port(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 65536


class ExternalKernel(Kernel):
    """A kernel whose process belongs to another program."""

    def __init__(
        self,
        file: Path,
        info: ConnectionInfo,
        services: KernelServices,
        on_gone: OnGone,
        kernel_id: str | None = None,
    ) -> None:
        name = info["kernel_name"]
        spec = KernelSpec(display_name=name, interrupt_mode="message")
        root = services.settings.root_dir
        identity = kernel_id or str(uuid4())
        super().__init__(identity, name, spec, services, place=root, env={}, on_gone=on_gone)
        # The name comes from a file of another program. As labels of metrics, such names would have
        # no bound: "external" stands for all of them.
        self.reports = services.reports(identity, name, "external")
        self._file = file
        self._info = info
        self._inherited = False
        self.owned = False
        """Whether this server may end the kernel."""

    @property
    def info(self) -> ConnectionInfo:
        """The content of the connection file."""
        return self._info

    @property
    def counts(self) -> bool:
        """Never: ``max_kernels`` limits the kernels that this server starts."""
        return False

    async def start(self) -> None:
        """Open the sockets; the kernel is ready when it answers.

        Raises `ValueError` when no connection can be made from the file's content, or when the
        address is one where external kernels are not allowed.
        """
        if not is_near(self._info, self._services.settings.external_networks):
            raise ValueError("its address is not of this machine, nor of the external_networks")
        # Without the lock: the kernel is not listed until this is done (`ExternalKernels._add`).
        self._course.on(Event.BEGUN)
        self.state.generation = 1  # how often the other program restarts it is not known
        try:
            await self.traffic.connect(self._info)
        except (KernelUnreachable, KeeperUnavailable) as error:
            raise ValueError(error.message) from error
        self._life.begin(self._live())
        await self.register()

    async def adopt(self, record: KernelRecord) -> None:
        """Own a kernel that an earlier process of the server knew."""
        async with self._alone():
            self._registration.created, self.state.generation = record.created, 1
            self.owned = record.exclusive
            self._inherited = True
            self._course.on(Event.BEGUN)
            heard = await self._services.handover.recover(self, record, self._info)
            self.executions.send_again()
            if heard.opened:
                self._life.take_for_ready()
            self._life.begin(self._live())

    @property
    def _leavable(self) -> Container[Lifecycle]:
        return Lifecycle.STARTING, Lifecycle.RUNNING  # the kernel need not have answered yet

    async def _note_process(self, record: KernelRecord) -> None:
        record.connection = dict(self._info)
        record.connection_file = str(self._file)
        record.exclusive, record.external = self.owned, True

    async def restart(self, *, now: bool = False, newports: bool = False) -> None:  # noqa: ARG002
        """Raise `KernelNotRunning`: another program launches the process."""
        raise KernelNotRunning(f"Kernel {self.id} was not started by this server")

    async def stop(self, *, now: bool = False, why: str = "") -> None:  # noqa: ARG002
        """Forget the kernel. Its process is asked to end if it is `owned`, and goes on if not."""
        async with self._alone():
            if self._course.phase is Phase.GONE:
                return
            await self._life.end()
            if self.owned:
                # The keeper's socket is closed next, and a message that it has not sent is lost.
                self.traffic.own.send("control", "shutdown_request", {"restart": False})
                await asyncio.sleep(FAREWELL_SECONDS)
            await self.traffic.close()
            await self._life.retire(why)

    async def _live(self) -> None:
        """Ask the kernel until it answers, without a bound: its process cannot be watched."""
        if self._course.phase is Phase.RUNNING:
            return
        pause = 0.5
        while not await self.traffic.own.reach(pause):
            pause = min(pause * 2, 30.0)
        await self.traffic.stdin_connected()
        if self._inherited:
            self._life.take_for_ready()
        else:
            self._course.on(Event.CAME_UP)
            self.traffic.ready()


class ExternalKernels:
    """The external kernels of one server, by connection file.

    ``kernels`` are all kernels of the server by id; external ones are added there. ``on_gone`` is
    called for one that is forgotten.
    """

    def __init__(
        self, services: KernelServices, kernels: MutableMapping[str, Kernel], on_gone: OnGone
    ) -> None:
        settings = services.settings
        self._services = services
        self._settings = settings
        self._kernels = kernels
        self._on_gone = on_gone
        self._directory = settings.external_connection_dir or (
            Path(jupyter_runtime_dir()) / "external_kernels"
        )
        self._by_file: dict[Path, ExternalKernel] = {}
        # Held from the look at a file until its kernel is listed. Requests of several callers and
        # an adoption may look at the same time, and each file shall make one kernel.
        self._refreshing = asyncio.Lock()
        self._stops: set[asyncio.Task[None]] = set()  # the loop alone would not keep them

    @property
    def _allowed(self) -> bool:
        """Whether this server uses external kernels."""
        settings = self._settings
        return settings.allow_external_kernels or settings.external_connection_dir is not None

    def known(self, record: KernelRecord) -> ExternalKernel | None:
        """The kernel that an earlier server has used, not listed yet; None if it is not allowed."""
        file = Path(record.connection_file)
        near = is_near(record.connection, self._settings.external_networks)
        if not self._allowed or not near:
            about(logger, kernel_id=record.id).warning(
                "kernel %s (%s) is not to be used any more", record.id, file
            )
            return None
        kernel = self._by_file[file] = ExternalKernel(
            file, record.connection, self._services, self._on_gone, record.id
        )
        kernel.own(Ownership(record.owner, record.owner_groups, record.shares))
        return kernel

    async def refresh(self) -> None:
        """Look for connection files that have come or gone, if that is allowed."""
        if not self._settings.allow_external_kernels:
            return
        async with self._refreshing:
            found = await asyncio.to_thread(find_connection_files, self._directory)
            for file in [*self._by_file]:
                await self._forget_unless(file, found.get(file))
            for file, info in found.items():
                if file not in self._by_file:
                    await self._add(file, info)

    async def _forget_unless(self, file: Path, info: ConnectionInfo | None) -> None:
        """Forget the kernel of a file unless the file has this content still."""
        kernel = self._by_file.get(file)
        if kernel is not None and kernel.info != info:
            # A request that looks may be cancelled here, when its client goes away. The stop is a
            # task of its own and goes on: a kernel stopped by half would stay listed. The file is
            # forgotten last: the next look finds the kernel here, and waits for the stop.
            stop = asyncio.get_running_loop().create_task(kernel.stop(why=FILE_GONE))
            self._stops.add(stop)
            stop.add_done_callback(self._stops.discard)
            await asyncio.shield(stop)
            del self._by_file[file]

    async def _add(self, file: Path, info: ConnectionInfo) -> None:
        kernel = self._by_file[file] = ExternalKernel(file, info, self._services, self._on_gone)
        try:
            await kernel.start()
        except ValueError as error:
            # The file stays known: it is tried again when it has changed, and not at each look.
            logger.warning("the connection file %s is of no use: %s", file, error)
            await kernel.stop()
        except BaseException:  # the client has gone away, for one: the next look tries again
            del self._by_file[file]
            await kernel.stop()
            raise
        else:
            self._kernels[kernel.id] = kernel

    async def adopt_file(self, name: str, *, owned: bool) -> Kernel:
        """The external kernel of a connection file, which must be in the directory for those.

        ``owned`` if this server may end the kernel. Raises `InvalidPath` for a file in any other
        directory or one that is not usable.
        """
        if not self._allowed:
            raise InvalidPath("connection_file: the server has no directory for such files")
        async with self._refreshing:
            file, info = await asyncio.to_thread(find_connection_file, self._directory, name)
            await self._forget_unless(file, info)
            kernel = self._by_file.get(file)
            if kernel is None or kernel.id not in self._kernels:
                await self._add(file, info)
                kernel = self._by_file[file]
            if kernel.id not in self._kernels:
                del self._by_file[file]
                raise InvalidPath(f"connection_file: {file.name} makes no connection")
            if owned and not kernel.owned:
                kernel.owned = True
                await kernel.register()
            return kernel
