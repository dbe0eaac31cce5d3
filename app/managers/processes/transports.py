"""How local kernels are reached: over ipc sockets where they work, over tcp on loopback otherwise.

Kernels in other languages often know only tcp. The first start of a kernelspec shows which of the
two works; that is remembered in the state directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import Final, Literal

import zmq
from jupyter_client.kernelspec import KernelSpec

from ...keeper.sockets import ConnectionInfo

__all__ = ["Transports", "ports_taken", "socket_files", "sockets_exist"]

logger = logging.getLogger(__name__)

Transport = Literal["ipc", "tcp"]

# A Unix socket's name has 108 bytes on Linux, 104 on macOS and the BSDs, its final zero included.
MAX_SOCKET_NAME: Final = 107 if sys.platform == "linux" else 103
_NAME_BYTES: Final = len("/k0123456789ab-5")


class Transports:
    """Chooses a transport for each start, and remembers which one works for each kernelspec.

    The sockets are below ``directory``, or else below the state directory. If kernels outlive this
    process (``lasting``), the directories of their sockets stay, too. Raises `ValueError` if the
    option asks for ipc and the platform does not have it.
    """

    def __init__(
        self,
        setting: Literal["auto", "ipc", "tcp"],
        state_dir: Path,
        directory: Path | None = None,
        *,
        lasting: bool = False,
    ) -> None:
        if setting == "ipc" and not zmq.has("ipc"):
            raise ValueError("transport=ipc: this platform has no ipc sockets")
        self._setting = setting if zmq.has("ipc") else "tcp"
        self._memory_file = state_dir / "transports.json"
        self._memory = self._load()
        self._lasting = lasting
        self._own_directory: str | None = None
        self._ipc_directory: Path | None = None
        if self._setting != "tcp":
            self._ipc_directory = self._make_directory(directory or state_dir)

    def _make_directory(self, parent: Path) -> Path:
        directory = parent / "ipc"
        if len(os.fsencode(directory)) + _NAME_BYTES <= MAX_SOCKET_NAME:
            directory.mkdir(mode=0o700, exist_ok=True)
            # Also if it was made before, or with another umask: the kernels' sockets are in there.
            directory.chmod(0o700)
            return directory
        self._own_directory = tempfile.mkdtemp(prefix="kernelkeep-")
        return Path(self._own_directory)

    @property
    def own(self) -> list[Path]:
        """The directory that was made for this process alone, if there is one."""
        return [Path(self._own_directory)] if self._own_directory and not self._lasting else []

    def close(self) -> None:
        """Remove the directory of sockets if it was made for this process alone."""
        if self._own_directory is not None and self._lasting:
            with contextlib.suppress(OSError):  # not empty: kernels that go on have sockets in it
                os.rmdir(self._own_directory)
        elif self._own_directory is not None:
            # The keeper removes it, too, in case this server is killed.
            shutil.rmtree(self._own_directory, ignore_errors=True)
        self._own_directory = None

    def choose(self, spec: KernelSpec) -> Transport:
        """The transport over which a kernel of this spec is to be started."""
        if self._setting != "auto":
            return self._setting
        return self._memory.get(_key(spec), "ipc")

    def may_fall_back(self, spec: KernelSpec, transport: Transport) -> bool:
        """Whether a start that failed over this transport may have failed because of it."""
        known = self._memory.get(_key(spec))
        return self._setting == "auto" and transport == "ipc" and known != "ipc"

    def remember(self, spec: KernelSpec, transport: Transport) -> None:
        """Remember that a kernel of this spec has come up over this transport."""
        key = _key(spec)
        if self._setting != "auto" or self._memory.get(key) == transport:
            return
        self._memory[key] = transport
        # There is no lock. Servers that share the state directory may overwrite each other's
        # entries, or mix two writes into one file, which `_load` refuses: a lost entry costs one
        # slower start. The file is written in the event loop: it is small, and each kernelspec
        # changes it once or twice.
        temporary = self._memory_file.with_suffix(".tmp")
        try:
            temporary.write_text(json.dumps(self._memory, indent=1))
            temporary.chmod(0o600)
            temporary.replace(self._memory_file)
        except OSError as error:  # the next server will learn it again
            logger.warning("cannot remember transports: %s", error)

    def new_address(self) -> str:
        """A prefix for the five ipc sockets of one kernel, used by no other."""
        assert self._ipc_directory is not None
        return str(self._ipc_directory / f"k{secrets.token_hex(6)}")

    def _load(self) -> dict[str, Transport]:
        try:
            memory = json.loads(self._memory_file.read_text())
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            logger.warning("what was known of transports is not readable: %s", error)
            return {}
        if not isinstance(memory, dict):
            logger.warning("what was known of transports is not readable: not an object")
            return {}
        return {key: value for key, value in memory.items() if value in ("ipc", "tcp")}


def _key(spec: KernelSpec) -> str:
    """The key of a spec. The command is a part of it: another one may know another transport."""
    identity = json.dumps([spec.resource_dir, spec.argv])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def sockets_exist(info: ConnectionInfo) -> bool:
    """Whether a kernel has bound any of its ipc sockets."""
    return any(
        os.path.exists(f"{info['ip']}-{info[name]}") for name in ("shell_port", "control_port")
    )


def socket_files(info: ConnectionInfo) -> list[Path]:
    """The ipc sockets that a kernel with this connection information binds; none over tcp."""
    if info.get("transport") != "ipc":
        return []
    ports = [value for name, value in info.items() if name.endswith("_port")]
    return [Path(f"{info['ip']}-{port}") for port in ports]


def ports_taken(info: ConnectionInfo) -> bool:
    """Whether another process has one of the tcp ports that are meant for a kernel.

    The kernel itself must not be running.
    """
    # This only explains a start that has failed, and has it repeated with other ports. A look
    # before the launch would promise nothing: any process may take a port right after it.
    for name in ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"):
        with socket.socket() as probe:
            # A connection of the kernel's last process that is in TIME_WAIT does not take a port.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((info["ip"], info[name]))
            except OSError:
                return True
    return False
