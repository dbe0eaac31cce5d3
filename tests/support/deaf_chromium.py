#!/usr/bin/env python3
"""Chromium that hears nothing of the machine's network interfaces.

This file, run with arguments, becomes Chromium with these arguments. It cannot open netlink sockets
any more, and neither can the processes that it starts. On such a socket Chromium hears that an
interface comes, goes or changes, and breaks off whatever it is loading (net::ERR_NETWORK_CHANGED).
Tests that lay cables run beside those that open pages, and neither shall wait for the other.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import shutil
import socket
import struct
import sys
from typing import Final

__all__ = ["chromium"]

# The number of socket(2), and how linux/audit.h names the architecture.
SOCKET: Final = {"x86_64": (41, 0xC000003E), "aarch64": (198, 0xC00000B7)}

PR_SET_SECCOMP: Final = 22
PR_SET_NO_NEW_PRIVS: Final = 38
SECCOMP_MODE_FILTER: Final = 2
ALLOW: Final = 0x7FFF0000
REFUSE: Final = 0x00050000 | errno.EPERM

# Offsets in struct seccomp_data: the number, the architecture, the first argument's lower half.
NUMBER, ARCHITECTURE, FAMILY = 0, 4, 16
LOAD, IS_EQUAL, RETURN = 0x20, 0x15, 0x06  # instructions of classic BPF


def chromium() -> str:
    """The program; it is a package of the system, as Playwright's own cannot be had everywhere."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    assert found, "Chromium is missing: apt install chromium"
    return found


def _refuse_netlink() -> None:
    """socket(AF_NETLINK, ...) fails with EPERM, from here on and for all children."""
    number, architecture = SOCKET[platform.machine()]
    instructions = [
        _load(ARCHITECTURE),
        _unless(architecture, skip=4),
        _load(NUMBER),
        _unless(number, skip=2),
        _load(FAMILY),
        _if(socket.AF_NETLINK, skip=1),
        _end(ALLOW),
        _end(REFUSE),
    ]
    code = ctypes.create_string_buffer(b"".join(instructions))
    # struct sock_fprog
    program = struct.pack("HL", len(instructions), ctypes.addressof(code))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program)


def _load(offset: int) -> bytes:
    return struct.pack("HBBI", LOAD, 0, 0, offset)


def _if(value: int, skip: int) -> bytes:
    return struct.pack("HBBI", IS_EQUAL, skip, 0, value)


def _unless(value: int, skip: int) -> bytes:
    return struct.pack("HBBI", IS_EQUAL, 0, skip, value)


def _end(how: int) -> bytes:
    return struct.pack("HBBI", RETURN, 0, 0, how)


def _prctl(option: int, value: int, more: bytes | int = 0) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    rest = [ctypes.c_ulong(0)] * 2
    argument = more if isinstance(more, bytes) else ctypes.c_ulong(more)
    if libc.prctl(option, ctypes.c_ulong(value), argument, *rest):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


if __name__ == "__main__":
    _refuse_netlink()
    os.execv(chromium(), sys.argv)
