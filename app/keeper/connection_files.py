"""Connection files of kernels whose server is on another host: written where the kernel is.

Such a keeper has the state directory as its working directory. The files are in ``runtime`` there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
from pathlib import Path
from typing import Final

from .output import pipe_of
from .protocol import Fields

__all__ = ["prepare", "remove_prepared"]

PORTS: Final = ("shell_port", "iopub_port", "stdin_port", "control_port", "hb_port")

MAX_SOCKET_NAME: Final = 103
"""Bytes of the name of a unix socket that every system takes."""

_KERNEL_ID: Final = re.compile(r"[0-9A-Za-z-]{1,64}").fullmatch


def prepare(fields: Fields) -> Fields:
    """Write a kernel's connection file; returns its absolute path, and what it says.

    ``fields`` has ``kernel_id``, and ``info`` without addresses: its ``transport`` tells whether
    these are sockets in the state directory or ports of loopback. Raises `OSError`, `ValueError`.
    """
    kernel_id = _checked(fields["kernel_id"])
    path = _file(kernel_id)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    info = dict(fields["info"])
    if info["transport"] == "ipc":
        prefix = _sockets(kernel_id)
        for number, name in enumerate(PORTS, 1):
            Path(f"{prefix}-{number}").unlink(missing_ok=True)  # of the process before
            info[name] = number
        info["ip"] = str(prefix)
        if len(os.fsencode(f"{prefix}-{len(PORTS)}")) > MAX_SOCKET_NAME:
            raise ValueError(f"the path {prefix} is too long for a socket")
    else:
        info |= {"ip": "127.0.0.1", **dict(zip(PORTS, _free_ports(len(PORTS))))}
    # Removed and made anew: a file that was there may have another mode, and has the key in it.
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(info, file)
    return {"file": str(path), "info": info}


def remove_prepared(kernel_id: str) -> None:
    """Remove a kernel's connection file and sockets, and the file of what its process wrote."""
    kernel_id = _checked(kernel_id)
    output = Path("output", f"kernel-{kernel_id}.log")
    sockets = [Path(f"{_sockets(kernel_id)}-{number}") for number in range(1, len(PORTS) + 1)]
    for path in (_file(kernel_id), *sockets, output, Path(f"{output}.1"), pipe_of(output)):
        with contextlib.suppress(OSError):
            path.unlink()


def _checked(kernel_id: str) -> str:
    if not _KERNEL_ID(kernel_id):
        raise ValueError("the id of a kernel")
    return kernel_id


def _file(kernel_id: str) -> Path:
    return Path.cwd() / "runtime" / f"kernel-{kernel_id}.json"


def _sockets(kernel_id: str) -> Path:
    # A hash is short, and differs for each id. A socket's name has room for some 100 bytes only.
    digest = hashlib.blake2b(kernel_id.encode(), digest_size=8).hexdigest()
    return Path.cwd() / "runtime" / digest


def _free_ports(count: int) -> list[int]:
    # All are open at once, so they differ. Between the close and the kernel's own bind another
    # process may take one: then the kernel does not come up, and is launched with other ports.
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()
