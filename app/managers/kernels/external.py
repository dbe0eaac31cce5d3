"""External kernels: started by others, found by the connection files they leave in a directory.

They are listed and can be used, but are not this server's: deleting one only forgets it, and it
ends when its file is removed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import stat
from collections.abc import Container, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from jupyter_client.kernelspec import KernelSpec

from ...keeper.sockets import ConnectionInfo
from ..errors import (
    InvalidPath,
    KeeperUnavailable,
    KernelNotRunning,
    KernelUnreachable,
)
from ..handover.store import KernelRecord
from ..state import Lifecycle
from .kernel import Kernel, OnGone
from .kernel_house import KernelHouse

__all__ = ["ExternalKernel", "find_connection_file", "find_connection_files", "is_near"]

logger = logging.getLogger(__name__)

FAREWELL_SECONDS: Final = 0.2
"""For the last request to leave; whether it is heeded nobody tells us."""

MAX_FILE_BYTES: Final = 65536
_PORTS: Final = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")
_TEXTS: Final = ("kernel_name", "key", "ip")
_OPTIONAL: Final = ("signature_scheme", "curve_publickey", "curve_secretkey")


def find_connection_files(directory: Path) -> dict[Path, dict[str, Any]]:
    """The connection files in ``directory`` that can be used, with what they hold.

    One is used if it names its kernel and has a key; anything else in the directory is passed over.
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
    """The path and content of one of these files, named by its name or its whole path.

    Raises `InvalidPath` for one in any other place, or of no use; which, it does not tell.
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
    """What a connection file holds, if it can be used: of ours or of root's, and no link."""
    try:
        # Opening a pipe would wait for somebody to write.
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

    A name could mean another address each time that it is looked up.
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
    """A kernel whose process belongs to somebody else."""

    def __init__(
        self,
        file: Path,
        info: ConnectionInfo,
        house: KernelHouse,
        on_gone: OnGone,
        kernel_id: str | None = None,
    ) -> None:
        name = info["kernel_name"]
        spec = KernelSpec(display_name=name, interrupt_mode="message")
        root = house.settings.root_dir
        identity = kernel_id or str(uuid4())
        super().__init__(identity, name, spec, house, place=root, env={}, on_gone=on_gone)
        # Whoever writes the file chooses the name: as a label there would be no end of them.
        self.reports = house.reports(identity, name, "external")
        self._file = file
        self._info = info
        self._inherited = False
        self.owned = False
        """Whether it may be ended here."""

    @property
    def info(self) -> ConnectionInfo:
        """What its connection file held."""
        return self._info

    @property
    def counts(self) -> bool:
        """Never: the room it takes is not this server's to give."""
        return False

    async def start(self) -> None:
        """Open the sockets; the kernel is ready when it answers.

        Raises `ValueError` when what its file holds makes no connection, or one
        to a place where no kernel may be.
        """
        if not is_near(self._info, self._house.settings.external_networks):
            raise ValueError("its address is not of this machine, nor of the external_networks")
        self.state.generation = 1  # of its other processes nothing is known here
        try:
            await self.traffic.connect(self._info)
        except (KernelUnreachable, KeeperUnavailable) as error:
            raise ValueError(error.message) from error
        self._begin_life()
        await self.keep()

    async def adopt(self, record: KernelRecord) -> None:
        """Go on for another process of the server, which knew the kernel."""
        async with self._lock:
            self.created, self.state.generation = record.created, 1
            self.owned = record.exclusive
            self._inherited = True
            heard = await self._house.handover.recover(self, record, self._info)
            self.executions.send_again()
            if heard.opened:
                self._take_for_ready()
            self._begin_life()

    @property
    def _leavable(self) -> Container[Lifecycle]:
        return Lifecycle.STARTING, Lifecycle.RUNNING  # it need not have answered yet

    async def _note_process(self, record: KernelRecord) -> None:
        record.connection = dict(self._info)
        record.connection_file = str(self._file)
        record.exclusive, record.external = self.owned, True

    async def restart(self, *, now: bool = False, newports: bool = False) -> None:  # noqa: ARG002
        """Raise `KernelNotRunning`: its process is not ours to restart."""
        raise KernelNotRunning(f"Kernel {self.id} was not started by this server")

    async def stop(self, *, now: bool = False) -> None:  # noqa: ARG002
        """Forget the kernel; its process goes on, unless it was said to be ours to end."""
        async with self._lock:
            if self._removed:
                return
            await self._end_life()
            if self.owned:
                self.traffic.own.send("control", "shutdown_request", {"restart": False})
                await asyncio.sleep(FAREWELL_SECONDS)
            await self.traffic.close()
            await self._retire()

    async def _live(self) -> None:
        """Ask until it answers. It may be long in coming, and nobody tells us when it ends."""
        if self._was_ready:
            return
        pause = 0.5
        reachable = asyncio.get_running_loop().create_task(self.traffic.own.reachable())
        try:
            while not reachable.done():
                self.traffic.own.probe()
                await asyncio.wait({reachable}, timeout=pause)
                pause = min(pause * 2, 30.0)
        finally:
            reachable.cancel()
        await self.traffic.stdin_connected()
        if self._inherited:
            self._take_for_ready()
        else:
            self.traffic.ready()
