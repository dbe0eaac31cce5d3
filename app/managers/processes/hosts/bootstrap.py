"""The program that a host's own Python runs: it has a keeper listen there, and tells where.

This server sends the text of this file to the interpreter's stdin (`bundle.program`), so it imports
nothing but the standard library and `pythons`. It reads one line of JSON, the order, and answers in
lines that begin with `MARK`: a login may print other lines. After the answer ``send`` it reads the
bytes of the keeper's zip.
"""

import contextlib
import errno
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any, BinaryIO, Callable  # noqa: UP035 - for old ones, to say that they are

from .pythons import MARK, Failed, check_python

PATIENCE = 10.0
"""Seconds that a keeper may take to listen."""

PASSED = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
"""Variables that programs of the user get, beside LC_* and XDG_*."""


def main(read: BinaryIO, tell: Callable[..., None]) -> None:
    """Do what the order says. ``read`` is a binary file, and ``tell`` is given each answer."""
    try:
        order = json.loads(read.readline())
        check_python()
        base = os.path.join(os.path.expanduser("~"), os.path.expanduser(order["path"]))
        state = os.path.join(base, "services", order["name"])
        os.makedirs(base, mode=0o700, exist_ok=True)
        for name in ("", "runtime", "output", "logs", "keeper"):
            os.makedirs(os.path.join(state, name), mode=0o700, exist_ok=True)
        # Checked after the directories are made: `base` may have been made by another user.
        check_owner(base)
        address = os.path.join(state, "keeper", "socket")
        if len(os.fsencode(address)) > 103:
            raise Failed("host_unusable", f"the path {address} is too long for a socket: set path")
        if not listens(address):
            start(state, bring(base, order, read, tell), order["module"])
            wait_for(address, os.path.join(state, "keeper", "log"))
        home = os.path.expanduser("~")
        tell(ready={"socket": address, "home": home, "python": sys.executable, "env": passed()})
    except Failed as error:
        tell(failed=error.code, text=str(error))
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        tell(failed="host_full" if full else "host_unusable", text=str(error))


def passed() -> dict[str, str]:
    """The variables for the keeper and its kernels. It gets no others: kernels can read its own."""
    return {
        name: value
        for name, value in os.environ.items()
        if name in PASSED or name.startswith(("LC_", "XDG_"))
    }


def check_owner(base: str) -> None:
    """Raise `Failed` if another user could replace the keeper's program."""
    status = os.stat(base)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise Failed("host_unusable", f"{base} belongs to, or can be written by, another user")


def bring(base: str, order: dict[str, Any], read: BinaryIO, tell: Callable[..., None]) -> str:
    """The path of the keeper's zip, which is asked for if it is not there."""
    path = os.path.join(base, "keeper-" + order["digest"][:16] + ".zip")
    if digest_of(path) != order["digest"]:
        tell(send=True)
        data = read.read(order["size"])
        if len(data) != order["size"]:
            raise Failed("host_unreachable", "the connection ended before the keeper was there")
        # Several servers may bring the zip at once, and a keeper may be starting from it: so the
        # file is replaced as a whole.
        temporary = f"{path}.{os.getpid()}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
    return path


def digest_of(path: str) -> str:
    """The SHA-256 of a file; empty if there is none."""
    try:
        with open(path, "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()
    except FileNotFoundError:
        return ""


def start(state: str, bundle: str, module: str) -> None:
    """Start a keeper, in a session of its own: it outlives the connection."""
    log = os.path.join(state, "keeper", "log")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        if os.fstat(descriptor).st_size > 2**20:
            os.truncate(log, 0)
        process = subprocess.Popen(
            [sys.executable, "-m", module, state],
            cwd=state,  # paths in requests to the keeper are relative to this
            env={**passed(), "PYTHONPATH": bundle},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=descriptor,
            start_new_session=True,
        )
    finally:
        os.close(descriptor)
    assert process.stdout is not None
    with process.stdout:
        told = process.stdout.readline().decode("utf-8", "replace").strip()
    process.returncode = 0  # the keeper outlives this process: Popen must not warn
    # If two programs start a keeper at once, the keeper's lock decides; the second program gets
    # ``taken``, and `wait_for` waits for the other's keeper.
    if told not in ("ready", "taken"):  # taken: another listens soon
        raise Failed("host_unusable", told or f"the keeper does not start; see {log}")


def wait_for(address: str, log: str) -> None:
    """Return when a keeper listens."""
    deadline = time.monotonic() + PATIENCE
    while not listens(address):
        if time.monotonic() > deadline:
            raise Failed("host_unusable", f"no keeper listens; see {log}")
        time.sleep(0.05)


def listens(address: str) -> bool:
    """Whether a process listens on this socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        # A keeper whose process is stopped accepts no connections. With a full backlog a blocking
        # connect would wait for ever, and each attempt of the server would leave such a process.
        probe.setblocking(False)
        try:
            probe.connect(address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except BlockingIOError:
            raise Failed(
                "host_unusable", "the keeper takes no connections; is its process stopped?"
            ) from None
    return True


def tell_line(**answer: object) -> None:
    """Write one answer."""
    sys.stdout.write(MARK + json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.stdin.buffer, tell_line)
