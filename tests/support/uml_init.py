"""The first process of a machine of `tests.support.uml`: it runs one command, and switches off.

It imports nothing but the standard library, and nothing of this repository.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys

POWER_OFF = 0x4321FEDC
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

MOUNTS = (
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("tmpfs", "/dev/shm"),
)

libc = ctypes.CDLL(None, use_errno=True)


def mount(kind: str, where: str) -> None:
    if where == "/dev/shm":
        os.makedirs(where, exist_ok=True)
    if libc.mount(kind.encode(), where.encode(), kind.encode(), 0, None) != 0:
        raise OSError(ctypes.get_errno(), f"{kind} at {where}")


def bring_up_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        asked = struct.pack("16sh", b"lo", 0)
        flags = struct.unpack("16sh", fcntl.ioctl(any_socket, SIOCGIFFLAGS, asked)[:18])[1]
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", flags | IFF_UP))


def main() -> None:
    with open(sys.argv[1]) as file:
        order = json.load(file)
    result = os.open(order["result"], os.O_RDONLY)  # /tmp is about to be covered
    output = os.open("output", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=result)
    try:
        for kind, where in MOUNTS:
            mount(kind, where)
        bring_up_loopback()
        done = subprocess.run(
            order["command"],
            cwd=order["cwd"],
            env=order["env"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=False,
        )
        code = os.open("code", os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=result)
        os.write(code, str(done.returncode).encode())
    except OSError as error:
        os.write(output, f"{error}\n".encode())
    os.sync()
    libc.reboot(POWER_OFF)


if __name__ == "__main__":
    main()
