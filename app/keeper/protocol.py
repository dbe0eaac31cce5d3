"""How a server and its keeper talk, and where they meet.

A stream of frames over a unix socket. A frame is two lengths (four bytes each, big-endian: of the
whole rest, and of its first part), a JSON object, and bytes that belong to it. The keeper speaks
first and says which version it is; then

    server -> {"ask": ..., "id": N, "until": T, ...}      and for each, in this order,
    keeper -> {"id": N, "answer": ...} or {"id": N, "error": TEXT, ...}, and between them
    keeper -> {"event": "exited", "kernel_id": ..., "code": ...}

and in both directions, with an empty object, the frames of `app.protocol.link`: requests for
kernels, and how far their logs go.

``until`` is when the server gives up waiting (`time.monotonic`, which a host's processes share).
The keeper does nothing of a request that it reads later: a signal that comes after a minute would
hit something else. What it did without the answer arriving is undone by the request ``end``, which
has no such time.

The frames, the greeting and the request ``drain`` are the same in every version: a server can have
a keeper that it does not understand let go of its kernels, and replace it. A server speaks its own
version and the one before (`SPOKEN`). What has changed:

    4  ``hello`` is answered with ``{"kept": [...], "heard": [...]}``: the processes, and the ids of
       the kernels that are heard. It was the list of processes alone. Later keepers of this version
       add ``can``, the fields of requests that must not be sent to a keeper which ignores them.
    3  The keeper hears kernels, and writes their logs.
    2  Requests and answers have ids; an answer without one is that to the oldest request.

The keeper that was started last has the directory ``keeper``. A server that finds one of the
version before there renames the directory (`new_aside_dir`), and starts its own. The older keeper
does not notice: it knows its directory by a descriptor.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
import stat
import struct
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final, cast

from .processes import HAS_PROC

__all__ = [
    "CAN",
    "MAX_FRAME",
    "PROTOCOL",
    "SPOKEN",
    "Fields",
    "Frames",
    "Garbled",
    "TooOpen",
    "address_of",
    "are_own",
    "aside_dirs",
    "check_private",
    "cut_off",
    "is_own_peer",
    "is_own_xucred",
    "keeper_dir",
    "new_aside_dir",
    "open_dir",
    "pack",
    "receive",
    "socket_address",
]

PROTOCOL: Final = 4
"""The version of requests and answers. Further fields and requests do not change it."""

SPOKEN: Final = (PROTOCOL, PROTOCOL - 1)
"""The versions that a server speaks."""

CAN: Final = ("as_user", "arguments", "term")
"""Fields that this keeper does not ignore: it launches a process ``as_user``, or not at all.

Of a kernel it obeys the replica with the highest ``term`` (`app.keeper.terms`). A replica names
itself in its ``hello``, each request that names a kernel has the term, and whoever has the kernel
no longer is told the event ``fenced``."""

MAX_FRAME: Final = 2**31
MAX_HEAD: Final = 2**26
"""Bytes of a frame, and of its object. No frame of a sound peer comes near."""

Fields = dict[str, Any]

_LENGTHS: Final = struct.Struct("!II")
_CREDENTIALS: Final = struct.Struct("iII")

_SOL_LOCAL: Final = 0
_LOCAL_PEERCRED: Final = 1
_XUCRED_HEAD: Final = struct.Struct("=II")
_XUCRED_BYTES: Final = 76  # with up to 16 groups

_ASIDE: Final = re.compile(r"keeper\.[0-9]+\.[0-9]+").fullmatch

MAX_ADDRESS: Final = 103
"""Bytes of a unix socket's address on macOS, without the NUL that ends it."""


class Garbled(Exception):
    """The bytes that were received are no frame of this protocol."""


class TooOpen(Exception):
    """Others than the owner can get at the keeper's files; the text says how to mend it."""


def pack(fields: Fields, data: bytes = b"") -> bytes:
    """A frame. Raises `ValueError` for one that the other end would not take."""
    head = json.dumps(fields).encode() if fields else b"{}"
    if len(head) > MAX_HEAD or len(head) + len(data) > MAX_FRAME - 4:
        raise ValueError("too much for one frame")
    return _LENGTHS.pack(4 + len(head) + len(data), len(head)) + head + data


async def receive(reader: asyncio.StreamReader, most: int = MAX_FRAME) -> tuple[Fields, bytes]:
    """The next frame, of ``most`` bytes: its object, and the bytes behind it.

    Raises `Garbled`, and `asyncio.IncompleteReadError` or `ConnectionError` at the end.
    """
    whole, head = _check(_LENGTHS.unpack(await reader.readexactly(_LENGTHS.size)), most)
    body = await reader.readexactly(whole - 4)
    return _fields(body[:head]), body[head:]


def _check(lengths: tuple[int, int], most: int) -> tuple[int, int]:
    whole, head = lengths
    if not 4 + head <= whole <= most or head > MAX_HEAD:
        raise Garbled("impossible lengths")
    return whole, head


def _fields(head: bytes | bytearray) -> Fields:
    if head == b"{}":
        return {}
    try:
        fields = json.loads(head)
    except (ValueError, RecursionError):
        raise Garbled("no JSON") from None  # which may have a secret of the environment in it
    if not isinstance(fields, dict):
        raise Garbled("no JSON object")
    return fields


class Frames(asyncio.Protocol):
    """Takes a stream of frames apart, as it comes: ``on_frame`` is called for each, at once.

    ``on_end`` is called when the connection is lost, once, with `Garbled` where what came was no
    frame of ``most`` bytes; the connection is closed then. ``on_frame`` may raise that, too.
    """

    def __init__(
        self,
        on_frame: Callable[[Fields, bytes], None],
        on_end: Callable[[Exception | None], None],
        most: int = MAX_FRAME,
    ) -> None:
        self._most = most
        self._on_frame = on_frame
        self._on_end = on_end
        self._rest = bytearray()  # bytes that have come and were not handed on
        self._transport: asyncio.Transport | None = None
        self._error: Exception | None = None
        self._held = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Note the transport of the new connection."""
        self._transport = cast(asyncio.Transport, transport)

    def hold(self) -> None:
        """Hand on nothing, and read nothing, until `go_on`."""
        # Bytes that have come already wait in `_rest`. If `_take` is running, it stops behind the
        # present frame, and its caller puts the other bytes there, too.
        self._held = True
        if self._transport is not None:
            self._transport.pause_reading()

    def go_on(self) -> None:
        """Hand on what was held back, and read on."""
        self._held = False
        self._hand_on()
        # A frame that was handed on may have had this hold again, or end.
        if not self._held and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        """Hand on every frame that is whole."""
        if self._rest or self._held:
            self._rest += data
            self._hand_on()
        else:  # mostly what comes at once are whole frames: without a copy
            self._rest += memoryview(data)[self._take(data) :]

    def _hand_on(self) -> None:
        # Taken out first: a frame may come back here by `go_on`, and must not be handed on twice.
        rest, self._rest = self._rest, bytearray()
        done = self._take(rest)
        del rest[:done]
        self._rest = rest

    def _take(self, data: bytes | bytearray) -> int:
        """Hand on the frames that are whole; how many bytes those had."""
        start, size = 0, len(data)
        try:
            while size - start >= _LENGTHS.size and self._error is None and not self._held:
                whole, head = _check(_LENGTHS.unpack_from(data, start), self._most)
                begin = start + _LENGTHS.size
                end = begin + whole - 4
                if end > size:
                    break
                fields = _fields(data[begin : begin + head])
                start = end  # before the call: a frame counts as taken whatever it raises
                self._on_frame(fields, bytes(memoryview(data)[begin + head : end]))
        except Garbled as error:
            # Where the next frame begins is unknown, or the peer errs: nothing more is taken.
            self._error = error
            if self._transport is not None:
                self._transport.close()
        return start

    def connection_lost(self, exc: Exception | None) -> None:
        """Hand on the frames that were held back, and call ``on_end``: nothing more will come."""
        # A server that sends a request and ends wants it done, answered or not.
        self._held = False
        self._hand_on()
        self._on_end(self._error or exc)


def keeper_dir(state_dir: Path) -> Path:
    """The directory (0700) of the keeper's socket, lock and log."""
    return state_dir / "keeper"


def aside_dirs(state_dir: Path) -> list[Path]:
    """The directories of the keepers that were set aside for one of a later version."""
    return sorted(path for path in state_dir.glob("keeper.*") if _ASIDE(path.name))


def new_aside_dir(state_dir: Path, version: int) -> Path:
    """A name for the directory of a keeper of this version that is to be set aside."""
    names = (state_dir / f"keeper.{version}.{number}" for number in count(1))
    return next(path for path in names if not os.path.lexists(path))


def open_dir(state_dir: Path) -> int:
    """A descriptor of the keeper's directory, which is made if it is not there.

    Raises `TooOpen` or `OSError`.
    """
    # The directory is made, then checked, then opened. Once both directories are found to be this
    # user's alone, no other user can put another directory in their place. O_NOFOLLOW, as the check
    # passes over the mode of a link.
    directory = keeper_dir(state_dir)
    directory.mkdir(mode=0o700, exist_ok=True)
    check_private(state_dir)
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)


def check_private(state_dir: Path) -> None:
    """Raise `TooOpen` if anybody else can reach the service's files, or put others in their place.

    The keeper's, or the registry, which has the kernels' keys. What is not there is fine.
    """
    # A directory that passes stays as it is: only its owner can change it, or what lies in it.
    checked = [state_dir, state_dir / "registry.sqlite"]
    for directory in (keeper_dir(state_dir), *aside_dirs(state_dir)):
        checked += [directory, directory / "socket", directory / "log"]
    forbidden = 0o077
    for path in checked:
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        if status.st_uid != os.geteuid():
            raise TooOpen(f"{path} belongs to another user: chown -R {os.geteuid()} {state_dir}")
        if status.st_mode & forbidden and not stat.S_ISLNK(status.st_mode):
            mode = stat.S_IMODE(status.st_mode)
            raise TooOpen(
                f"{path} is open to others (mode {mode:04o}): "
                f"chmod {mode & ~forbidden & 0o777:04o} {path}"
            )


@contextlib.contextmanager
def socket_address(directory: int, path: Path, name: str = "socket") -> Iterator[str]:
    """Within, an address of a unix socket in the directory with this descriptor and this path.

    A socket's address has 108 bytes at most, on macOS 104; the path of a state directory may have
    more. Where there is no /proc, the path leads there if it is short enough, and a symbolic link
    in a private directory otherwise. Raises `OSError`.
    """
    # The address names the directory by its descriptor, which stays right when a server sets the
    # directory aside (renames it).
    if HAS_PROC:
        yield f"/proc/self/fd/{directory}/{name}"
    elif len(os.fsencode(path / name)) <= MAX_ADDRESS:
        yield str(path / name)
    else:
        import tempfile  # which a keeper's start is not to wait for

        private = tempfile.mkdtemp(prefix="keeper-")  # 0700: no other user can change the link
        link = os.path.join(private, "d")
        try:
            os.symlink(path.absolute(), link)
            yield os.path.join(link, name)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(link)
            os.rmdir(private)


@contextlib.contextmanager
def address_of(path: Path) -> Iterator[str]:
    """Within, an address of the unix socket at this path (`socket_address`). Raises `OSError`."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with socket_address(directory, path.parent, path.name) as address:
            yield address
    finally:
        os.close(directory)


def cut_off(transport: asyncio.WriteTransport) -> None:
    """End a connection at once, whatever is under way; it may be gone already.

    Before Python 3.11.4 a TLS transport whose connection is gone has nobody to hand that on to.
    """
    with contextlib.suppress(AttributeError):
        transport.abort()


def is_own_peer(connection: socket.socket) -> bool:
    """Whether the process at the other end is of the same user."""
    if not hasattr(socket, "SO_PEERCRED"):
        return is_own_xucred(connection.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_BYTES))
    return are_own(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))


def are_own(credentials: bytes) -> bool:
    """Whether a peer's credentials, a ``struct ucred``, are of the same user [unix(7)]."""
    _pid, uid, _gid = _CREDENTIALS.unpack(credentials)
    return bool(uid == os.geteuid())


def is_own_xucred(credentials: bytes) -> bool:
    """Whether a peer's credentials are of the same user [macOS: unix(4), LOCAL_PEERCRED].

    They are a ``struct xucred``, which begins with its version and the user's id, 32 bits each.
    Version 0 is the only one.
    """
    if len(credentials) < _XUCRED_HEAD.size:
        return False
    version, uid = _XUCRED_HEAD.unpack_from(credentials)
    return bool(version == 0 and uid == os.geteuid())
