"""Launching processes: a kernel's, as the keeper's user or as another one, and a fork server's."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

from .processes import start_time
from .protocol import Fields

__all__ = ["ARGUMENTS", "AsUser", "launch_process", "run"]

ARGUMENTS: Final = "{arguments}"
"""The word of a command that is replaced by the number of a descriptor: the process reads its
arguments from there."""

_SET_NO_NEW_PRIVS: Final = 38  # prctl(2)

_UMASK: Final = 0o077
"""The umask of another user's kernels: nobody else can read their files."""

_PASS: Final = getattr(os, "O_PATH", os.O_RDONLY) | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class AsUser(NamedTuple):
    """The user that a process is launched as; it works at or below ``home``."""

    uid: int
    gid: int
    home: str

    @classmethod
    def of(cls, fields: Fields | None) -> AsUser | None:
        """The user that the field ``as_user`` of a request names. Raises `ValueError`.

        The keeper's own user and root are refused, whoever asks for them.
        """
        if fields is None:
            return None
        uid, gid, home = fields["uid"], fields["gid"], fields["home"]
        if (
            type(uid) is not int
            or type(gid) is not int
            or min(uid, gid) <= 0
            or uid == os.geteuid()
        ):
            raise ValueError("a kernel of another user is neither root's nor the keeper's")
        return cls(uid, gid, str(home))


def launch_process(
    command: list[str],
    env: Mapping[str, str],
    cwd: str,
    output: int,
    user: AsUser | None = None,
    arguments: Sequence[str] | None = None,
    *,
    prepare: Callable[[], None] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process, the leader of a session of its own. Raises `OSError`, and `ValueError`.

    ``output`` is the descriptor for its stdout and stderr. ``prepare`` is called in the child
    before the command is executed, as that user already. ``arguments`` the process reads from a
    descriptor, a NUL behind each: so they show in no command line, as its environment's do not.
    """
    options: dict[str, Any] = {
        "env": env,
        "stdin": subprocess.DEVNULL,
        "stdout": output,
        "stderr": output,
        "start_new_session": True,
        "preexec_fn": prepare,
    }
    if arguments is not None:
        if user is not None:
            raise ValueError("arguments are for a process of the keeper's own user")
        with _in_memory(arguments) as descriptor:
            words = [str(descriptor) if word == ARGUMENTS else word for word in command]
            return subprocess.Popen(words, cwd=cwd, pass_fds=[descriptor], **options)
    if user is None:
        return subprocess.Popen(command, cwd=cwd, **options)
    # The process starts in this very directory, whatever the path leads to by then.
    directory = _open_below(user.home, cwd)
    try:
        # So that the process can open /dev/stdout, as it could as the keeper's user.
        os.fchown(output, user.uid, user.gid)
        return _launch_as(user, command, f"/proc/self/fd/{directory}", options)
    finally:
        os.close(directory)


def run(fields: Fields) -> Fields:
    """Start a fork server, which is no kernel. The keeper becomes the parent of what it forks.

    Returns the process's id and `start_time`. Raises `OSError`.
    """
    process = subprocess.Popen(
        fields["command"],
        env=fields["env"],
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    process.returncode = 0  # `KeptKernels.reap` reaps it, and so subprocess must not
    return {"pid": process.pid, "start_time": start_time(process.pid)}


@contextlib.contextmanager
def _in_memory(arguments: Sequence[str]) -> Iterator[int]:
    """A descriptor of a file in memory with the arguments. Raises `ValueError` for a NUL."""
    if any("\0" in word for word in arguments):
        raise ValueError("an argument has a NUL in it, and would be two")
    data = b"".join(os.fsencode(word) + b"\0" for word in arguments)
    # This process closes its descriptor when the child has one. The file is gone when the child
    # has closed that, too.
    with open(os.memfd_create("arguments"), "w+b") as file:
        file.write(data)
        file.seek(0)
        yield file.fileno()


def _launch_as(
    user: AsUser, command: list[str], cwd: str, options: Mapping[str, Any]
) -> subprocess.Popen[bytes]:
    def launch() -> subprocess.Popen[bytes]:
        _forbid_privileges()
        return subprocess.Popen(
            command,
            cwd=cwd,
            user=user.uid,
            group=user.gid,
            extra_groups=[],
            umask=_UMASK,
            **options,
        )

    try:
        # The attributes of a thread pass to the processes that it starts. With a thread of its own
        # nothing has to be run in the child between fork and exec, where a process with threads
        # may do little; and the privilege that is forbidden is no other thread's.
        with ThreadPoolExecutor(1, "launch") as thread:
            return thread.submit(launch).result()
    except OSError as error:
        if error.filename == cwd:  # it was not executed yet
            raise OSError(
                error.errno, f"a process cannot be that of the user {user.uid}: {error.strerror}"
            ) from None
        raise


def _open_below(home: str, cwd: str) -> int:
    """A descriptor of the directory ``cwd``, at or below ``home``. No link below that is followed.

    The directories below are another user's, who can change them at any time: a path that was
    checked before may lead elsewhere by now. Raises `OSError`, and `ValueError`.
    """
    parts = Path(cwd).relative_to(home).parts
    if ".." in parts:
        raise ValueError("the directory of a kernel is not below its home")
    # Each step is taken from the directory of the step before, and by no link: nobody can put
    # another directory into the path in between.
    here = os.open(home, _PASS)
    for part in parts:
        try:
            below = os.open(part, _PASS, dir_fd=here)
        finally:
            os.close(here)
        here = below
    return here


def _forbid_privileges() -> None:
    """Have this thread, and what it starts, get no privilege by executing a program (setuid).

    It cannot be taken back. Raises `OSError`.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "new privileges cannot be forbidden")
