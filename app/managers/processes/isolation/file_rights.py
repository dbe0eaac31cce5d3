"""The rights with which the service itself reads and writes an owner's files.

Between the service's check of a path and its use, an owner's kernels can replace a directory by a
link. So the service has meanwhile no more rights than these kernels have: it can follow a link only
to files that they could open themselves. The system checks that at each call.

Both kinds of rights hold for one thread alone, which cannot, or need not, get its own back: so each
piece of work has a thread of its own (`with_rights`).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

__all__ = ["FileRights", "OfUser", "Within", "has_landlock", "has_user_rights", "with_rights"]

T = TypeVar("T")

SETGROUPS: Final = {"x86_64": 116, "aarch64": 159, "riscv64": 159, "ppc64le": 81, "s390x": 206}
"""The number of the system call setgroups(2), by machine. It is called by its number because the
function of the C library changes the groups of all threads."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every machine
_VERSION: Final = 1  # LANDLOCK_CREATE_RULESET_VERSION
_PATH_BENEATH: Final = 1  # LANDLOCK_RULE_PATH_BENEATH
_NO_NEW_PRIVS: Final = 38  # PR_SET_NO_NEW_PRIVS

_OLDEST: Final = 2
"""The least usable version of Landlock (Linux 5.19): it checks moves between directories, too."""

_EVERYTHING: Final = 2**14 - 1  # what version 2 knows of [landlock(7)]
_TRUNCATE: Final = 2**14  # since version 3
_READ: Final = 2**2 | 2**3  # files, and directories


@dataclass(frozen=True)
class FileRights:
    """The service's own rights. ``take`` blocks, as do the methods of the other kinds."""

    def take(self) -> None:
        """Have this thread work with these rights from now on. Raises `OSError`."""

    def lifted(self) -> AbstractContextManager[None]:
        """A block with the service's own rights, for files whose paths no owner can change."""
        return nullcontext()

    def also(self, directory: Path) -> FileRights:
        """These rights together with those to a directory of the service."""
        del directory
        return self


@dataclass(frozen=True)
class OfUser(FileRights):
    """The rights of a user of the system, without further groups. The service has to be root.

    New files belong to that user.
    """

    uid: int
    gid: int

    def take(self) -> None:
        """As `FileRights.take`: the thread's file system ids [setfsuid(2)]."""
        libc = _libc()
        _checked(libc.syscall(_number(SETGROUPS[platform.machine()]), _number(0), None))
        _set_id(libc.setfsgid, self.gid)
        # The user comes last: with it the thread loses root's capabilities for files, too
        # [capabilities(7)].
        _set_id(libc.setfsuid, self.uid)

    @contextmanager
    def _lifted(self) -> Iterator[None]:
        libc = _libc()
        _set_id(libc.setfsuid, os.geteuid())
        try:
            yield
        finally:
            _set_id(libc.setfsuid, self.uid)

    def lifted(self) -> AbstractContextManager[None]:
        """As `FileRights.lifted`."""
        return self._lifted()


@dataclass(frozen=True)
class Within(FileRights):
    """The rights to what lies below some directories, by Landlock.

    Landlock does not hide whether a file is there, nor its size and times.
    """

    writable: tuple[Path, ...]
    readable: tuple[Path, ...] = ()

    def also(self, directory: Path) -> Within:
        """As `FileRights.also`."""
        return Within((*self.writable, directory), self.readable)

    def take(self) -> None:
        """As `FileRights.take`."""
        libc = _libc()
        handled = _EVERYTHING | (_TRUNCATE if _landlock_version() > _OLDEST else 0)
        attributes = struct.pack("=Q", handled)
        rules = _checked(libc.syscall(_number(_CREATE_RULESET), attributes, _number(8), _number(0)))
        try:
            for paths, allowed in ((self.writable, handled), (self.readable, _READ)):
                for path in paths:
                    _allow(rules, path, allowed)
            # Without this the kernel takes no ruleset from a process without privileges.
            _checked(libc.prctl(_NO_NEW_PRIVS, *map(_number, (1, 0, 0, 0))))
            _checked(libc.syscall(_number(_RESTRICT_SELF), _number(rules), _number(0)))
        finally:
            os.close(rules)


def _allow(rules: int, path: Path, allowed: int) -> None:
    """Add a directory to a ruleset; the path is not followed if it ends in a link."""
    flags = os.O_PATH | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW
    descriptor = os.open(path, flags)
    try:
        rule = struct.pack("=Qi", allowed, descriptor)
        arguments = (_number(rules), _number(_PATH_BENEATH), rule, _number(0))
        _checked(_libc().syscall(_number(_ADD_RULE), *arguments))
    finally:
        os.close(descriptor)


def with_rights(rights: FileRights, work: Callable[[], T]) -> T:
    """Run ``work`` with these rights, and return its result; blocks.

    Raises what ``work`` raises, and `OSError` if the rights cannot be taken.
    """
    if type(rights) is FileRights:
        return work()
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            rights.take()
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    # A daemon, as the file system may never answer.
    threading.Thread(target=run, name="an owner's files", daemon=True).start()
    return outcome.result()


def has_user_rights() -> bool:
    """Whether a thread can have the rights of another user here (`OfUser`)."""
    return sys.platform.startswith("linux") and platform.machine() in SETGROUPS


def has_landlock() -> bool:
    """Whether a thread can have rights to some directories only here (`Within`)."""
    return sys.platform.startswith("linux") and _landlock_version() >= _OLDEST


@cache
def _landlock_version() -> int:
    """The version of Landlock that the kernel has; -1 if it has none, or does not let us use it."""
    version: int = _libc().syscall(_number(_CREATE_RULESET), None, _number(0), _number(_VERSION))
    return version


@cache
def _libc() -> Any:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    return libc


def _number(value: int) -> ctypes.c_long:
    """An argument of a function whose arguments have no declared types."""
    return ctypes.c_long(value)


def _set_id(function: Callable[[ctypes.c_uint], int], number: int) -> None:
    """Set an id by setfsuid(2) or setfsgid(2), and check it: the calls report no failure.

    Raises `PermissionError` if the id was not set.
    """
    function(ctypes.c_uint(number))
    # -1 is no valid id: the call changes nothing, and returns the present id.
    if function(ctypes.c_uint(2**32 - 1)) & 0xFFFFFFFF != number:
        raise PermissionError(1, "The thread cannot have the file system rights of the owner")


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
