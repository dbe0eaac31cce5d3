"""The token of a server that was given none."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from app.settings import Settings

__all__ = ["make_token"]

FILE: Final = "token"

BYTES: Final = 24


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
