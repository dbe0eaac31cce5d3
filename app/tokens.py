"""Makes the token of a server that was given none, and hides one that was given as a variable."""

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
    """Overwrite the value of a variable where other processes can read it [proc(5)].

    ``/proc/PID/environ`` shows the memory in which this process was given its variables. The
    process, and those that it starts, still have the variable. Without ``/proc`` nothing happens.
    """
    value = os.environ.get(name)
    if not value:
        return
    os.environ[name] = value  # this copies the value to new memory
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The fields behind the command, which is in parentheses, begin with the third.
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[50 - 3]), int(fields[51 - 3])
        with open("/proc/self/mem", "r+b", buffering=0) as memory:
            memory.seek(start)
            block = memory.read(end - start)
            entry = os.fsencode(f"{name}=")
            place = (b"\0" + block).index(b"\0" + entry) + len(entry)
            # Only the old value is overwritten, whose end is looked for: the variable may have got
            # a longer one since the process started, and behind it are other variables.
            length = block.index(b"\0", place) - place
            memory.seek(start + place)
            memory.write(b"*" * length)


def make_token(settings: Settings) -> str:
    """A new token, or the last server's if kernels outlive the server.

    That token is in a file (0600) of the state directory, so that clients can use it as long as
    their kernels run. A file that other users can read, or that belongs to another user, is
    replaced, with a new token.
    """
    if not settings.keeps:
        return secrets.token_hex(BYTES)
    path = settings.state_dir / FILE
    found = _read(path)
    if found:
        return found
    token = secrets.token_hex(BYTES)
    with contextlib.suppress(OSError):  # other checks report an unusable state directory
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # The old file is removed rather than truncated: another user may have opened it while it
        # was readable, and would read the new token. O_EXCL also refuses a link that is put there
        # meanwhile.
        path.unlink(missing_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "w") as file:
            file.write(token)
    return token


def _read(path: Path) -> str:
    """The token in a file that only this user can read; empty if there is no such file."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            status = os.fstat(file.fileno())
            private = stat.S_ISREG(status.st_mode) and not status.st_mode & 0o077
            text = file.read(2 * BYTES + 1).decode("ascii", "replace")
    except OSError:
        return ""
    hexadecimal = len(text) == 2 * BYTES and set(text) <= set("0123456789abcdef")
    return text if private and hexadecimal and status.st_uid == os.geteuid() else ""
