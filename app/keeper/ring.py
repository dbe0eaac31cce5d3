"""What a kernel said on iopub lately, heard by a subscription of the keeper's own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import Any, Final

import zmq

from app.keeper.sockets import connect, read_frames

__all__ = ["Ring", "Room", "Subscription"]

MESSAGES_PER_TURN: Final = 64
PAUSE_SECONDS: Final = 0.02
"""Between a message and the look at it. To wake for each costs ten times what it costs to read."""

FRAME_OVERHEAD: Final = 60
"""Bytes that each frame costs beside its content, roughly."""

SLACK: Final = 16
"""The part of all bytes that comes and goes between two looks at them together."""

# Topic, delimiter, signature, and three parts of JSON come before the content of every message.
_LEADING: Final = (int(zmq.NOBLOCK),) * 6


class Room:
    """The bound on what all rings hold together, in bytes.

    Where they want more, each gets the same share; what one does not need is the others'.
    """

    def __init__(self, rings: Callable[[], Iterable[Ring]]) -> None:
        self.max_bytes = 0
        self._rings = rings
        self._grown = 0

    def grow(self, size: int) -> None:
        """Some ring has got so many bytes more."""
        self._grown += size
        if self._grown > self.max_bytes // SLACK:
            self.enforce()

    def enforce(self) -> None:
        """Drop what is too much, and a bit more, so that this need not be looked at soon again."""
        self._grown = 0
        left = self.max_bytes - self.max_bytes // SLACK
        rings = sorted(self._rings(), key=lambda ring: ring.size)
        for count, ring in enumerate(rings):
            ring.trim(left // (len(rings) - count))
            left -= ring.size


class Ring:
    """Messages with an index each, from 1 on; the oldest are dropped beyond ``max_bytes``."""

    def __init__(self, max_bytes: int, room: Room) -> None:
        self.max_bytes = max_bytes
        self.next = 1
        self.size = 0
        self._room = room
        self._messages: deque[tuple[int, list[bytes]]] = deque()  # with their sizes

    @property
    def first(self) -> int:
        """The index of the oldest message; that of the next one if there is none."""
        return self.next - len(self._messages)

    def append(self, frames: list[bytes], size: int) -> None:
        """The next message, as it was received, and how many bytes that is."""
        size += FRAME_OVERHEAD * len(frames)
        self._messages.append((size, frames))
        self.size += size
        self.next += 1
        if self.size > self.max_bytes:
            self.trim(self.max_bytes)
        self._room.grow(size)

    def skip(self) -> None:
        """The next message is larger than the ring: it is dropped, with all before it."""
        self._messages.clear()
        self.size = 0
        self.next += 1

    def trim(self, max_bytes: int) -> None:
        """Drop the oldest messages beyond so many bytes."""
        while self.size > max_bytes and self._messages:
            self.size -= self._messages.popleft()[0]

    def since(self, after: int, max_bytes: int) -> list[tuple[int, list[bytes]]]:
        """Messages behind the index ``after``, about so many bytes of them, one at least."""
        page: list[tuple[int, list[bytes]]] = []
        total = 0
        begin = max(after + 1 - self.first, 0)
        messages = islice(self._messages, begin, None)
        for index, (size, frames) in enumerate(messages, self.first + begin):
            total += size
            if page and total > max_bytes:
                break
            page.append((index, frames))
        return page


class Subscription:
    """A subscriber's socket to a kernel's iopub, whose messages go into a ring as they are.

    They are not looked at: signatures are checked by the server, which has to do so anyway.
    """

    def __init__(
        self, context: zmq.Context[zmq.Socket[bytes]], info: Mapping[str, Any], ring: Ring
    ) -> None:
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        self._turn: asyncio.Handle | None = None
        socket = self._socket = context.socket(zmq.SUB)
        try:
            socket.linger = 0
            socket.reconnect_ivl = 20
            socket.rcvhwm = 0  # the kernel's publisher drops what a slow subscriber does not take
            socket.subscribe(b"")
            connect(socket, info, "iopub")
        except BaseException:
            socket.close(linger=0)
            raise
        self._descriptor = int(socket.getsockopt(zmq.FD))
        # The descriptor tells only changes, so the first look is not its.
        self._turn = self._loop.call_soon(self._read)

    def close(self) -> None:
        """Take what has arrived, and close the socket."""
        self.catch_up()
        self._loop.remove_reader(self._descriptor)
        if self._turn is not None:
            self._turn.cancel()
        self._socket.close(linger=0)

    def catch_up(self) -> None:
        """Take what has arrived."""
        while self._receive():
            pass

    def _on_readable(self) -> None:
        """Something has come. Nobody waits for it: what comes meanwhile is read with it."""
        self._loop.remove_reader(self._descriptor)
        self._turn = self._loop.call_later(PAUSE_SECONDS, self._read)

    def _read(self) -> None:
        """One turn; what is left has its own, so that one busy kernel does not starve others."""
        if self._receive():
            self._turn = self._loop.call_soon(self._read)
        else:
            self._turn = None
            self._loop.add_reader(self._descriptor, self._on_readable)

    def _receive(self) -> bool:
        """Read some messages; whether there may be more."""
        socket, ring = self._socket, self._ring
        for _ in range(MESSAGES_PER_TURN):
            frames = read_frames(socket, _LEADING)
            if not frames:
                return False
            size = sum(map(len, frames))
            if size > ring.max_bytes:  # and nobody has copied it
                ring.skip()
            else:
                ring.append([*map(bytes, frames)], size)
        return True
