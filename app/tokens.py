"""The token of a server that was given none, and where one that was given must not stay."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from .settings import Settings

__all__ = ["TOKEN_VARIABLE", "make_token", "wipe_variable"]

TOKEN_VARIABLE: Final = "KERNELKEEP_TOKEN"

FILE: Final = "token"

BYTES: Final = 24


def wipe_variable(name: str) -> None:
    """Have a variable no longer where other processes see it: in ``/proc/PID/environ`` [proc(5)].

    That shows the memory in which the variables were handed to this process. This process, and
    those that it starts, go on having the variable. Does nothing where there is no ``/proc``.
    """
    value = os.environ.get(name)
    if not value:
        return
    os.environ[name] = value  # it is in new memory from now on
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The fields behind the command, which is in parentheses, begin with the third.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[50 - 3]), int(fields[51 - 3])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            block = memory.read(end - start)
            entry = os.fsencode(f"{name}=")
            place = (b"\0" + block).index(b"\0" + entry) + len(entry)
            # To the end of what is there: the variable may have got a longer value meanwhile, and
            # behind it are others.
            length = block.index(b"\0", place) - place
            memory.seek(start + place)
            memory.write(b"*" * length)


def make_token(settings: Settings) -> str:
    """A new token; where kernels outlive the server, the one that the last server made.

    That is in a file (0600) of the state directory: what a client was told is true for as long as
    its kernels are there. A file that others can read, or of somebody else's, is made anew.
    """
    if not settings.keeps:
        return secrets.token_hex(BYTES)
    path = settings.state_dir / FILE
    found = _read(path)
    if found:
        return found
    token = secrets.token_hex(BYTES)
    with contextlib.suppress(OSError):  # a state directory of no use is told of elsewhere
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "w") as file:
            file.write(token)
    return token


def _read(path: Path) -> str:
    """The token in a file that is ours alone; empty if there is none."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            private = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077
            text = file.read(2 * BYTES + 1).decode("ascii", "replace")
    except OSError:
        return ""
    hexadecimal = len(text) == 2 * BYTES and set(text) <= set("0123456789abcdef")
    return text if private and hexadecimal and status.st_uid == os.geteuid() else ""
