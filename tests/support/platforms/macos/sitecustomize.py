"""An interpreter as macOS has it before Python 3.13, as far as processes go. For PYTHONPATH.

There are no pidfds, no /proc, no waitid(2), no prctl(2), no SO_PEERCRED; there is kqueue(2) for the
end of a process, and LOCAL_PEERCRED. The two are made here of what Linux has. What psutil and the
tests look up in /proc they find.
"""

import errno
import os
import select
import selectors
import signal
import socket
import struct
import sys
from types import FrameType, SimpleNamespace
from typing import Any

# Loaded before there is a kqueue, which it would use.
_SELECTORS = selectors
_select: Any = select
_socket: Any = socket.socket

_pidfd_open, _stat = os.pidfd_open, os.stat
_SO_PEERCRED = socket.SO_PEERCRED
_getsockopt = socket.socket.getsockopt

del os.pidfd_open, os.P_PIDFD, os.waitid, os.posix_fallocate, os.memfd_create
del signal.pidfd_send_signal, socket.SO_PEERCRED

_STANDARD = (os.path.dirname(os.__file__), "<frozen ")
_SEES_ALL = (f"{os.sep}psutil{os.sep}", f"{os.sep}tests{os.sep}")


def _sees_all(frame: FrameType | None) -> bool:
    """Whether the first that is not of the standard library is psutil or a test."""
    while frame is not None:
        file = frame.f_code.co_filename
        if any(part in file for part in _SEES_ALL) and file != __file__:
            return True
        if file != __file__ and not (file.startswith(_STANDARD) and "site-packages" not in file):
            return False
        frame = frame.f_back
    return False


def _refuse(path: object) -> None:
    if isinstance(path, os.PathLike):
        path = os.fspath(path)
    name = os.fsdecode(path) if isinstance(path, str | bytes) else ""
    if name.startswith("/proc") and not _sees_all(sys._getframe(2)):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event in ("open", "os.listdir", "os.scandir"):
        _refuse(arguments[0])
    elif event in ("socket.bind", "socket.connect"):
        _refuse(arguments[1])
    elif event == "ctypes.dlsym" and arguments[1] == "prctl":
        raise AttributeError("there is no prctl")


sys.addaudithook(_audit)


def stat(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
    _refuse(path)
    return _stat(path, *arguments, **options)


os.stat = stat
for which in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
    which.add(stat)


class kqueue:  # noqa: N801
    """For EVFILT_PROC and NOTE_EXIT alone [macOS: kqueue(2)]."""

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._pids: dict[int, int] = {}

    def control(
        self, changes: list[SimpleNamespace] | None, most: int, timeout: float | None = None
    ) -> list[SimpleNamespace]:
        for change in changes or ():
            assert (change.filter, change.flags, change.fflags) == (-5, 1, 0x80000000)
            pidfd = _pidfd_open(change.ident)
            poll = select.poll()
            poll.register(pidfd, select.POLLIN)
            if poll.poll(0):  # a zombie
                os.close(pidfd)
                raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
            self._pids[pidfd] = change.ident
            self._poll.register(pidfd, select.EPOLLIN)
        if not most:
            return []
        assert timeout is not None
        events = []
        for pidfd, _ in self._poll.poll(timeout, most):
            self._poll.unregister(pidfd)
            os.close(pidfd)
            events.append(SimpleNamespace(ident=self._pids.pop(pidfd)))
        return events

    def fileno(self) -> int:
        return self._poll.fileno()

    def close(self) -> None:
        for pidfd in self._pids:
            os.close(pidfd)
        self._pids.clear()
        self._poll.close()


def kevent(ident: int, filter: int, flags: int, fflags: int) -> SimpleNamespace:
    return SimpleNamespace(ident=ident, filter=filter, flags=flags, fflags=fflags)


_select.kqueue, _select.kevent = kqueue, kevent
_select.KQ_FILTER_PROC, _select.KQ_EV_ADD, _select.KQ_NOTE_EXIT = -5, 1, 0x80000000


def getsockopt(self: socket.socket, level: int, option: int, *size: int) -> Any:
    if (level, option) != (0, 1):
        return _getsockopt(self, level, option, *size)
    assert size == (76,)
    _, uid, gid = struct.unpack("iII", _getsockopt(self, socket.SOL_SOCKET, _SO_PEERCRED, 12))
    return struct.pack("=IIhxxI60x", 0, uid, 1, gid)


_socket.getsockopt = getsockopt
