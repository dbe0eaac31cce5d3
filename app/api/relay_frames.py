"""The frames that replicas send each other (`relay.py`): a length, and a pair in MessagePack."""

from __future__ import annotations

import asyncio
from struct import Struct
from typing import Any, Final

import msgspec
from starlette.types import Message

from ..keeper.protocol import cut_off

__all__ = ["ENDS", "Frames", "event_of", "pack", "plain"]

MAX_FRAME: Final = 2**30
WRITTEN_BYTES: Final = 2**16
"""How many bytes of frames may wait for the end of a turn of the loop; more are written at once."""

_LENGTH: Final = Struct("!I")
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder().decode


def pack(kind: str, value: object) -> bytes:
    """The bytes of a frame."""
    body = _encode((kind, value))
    return _LENGTH.pack(len(body)) + body


ENDS: Final = (OSError, EOFError, ValueError, msgspec.MsgspecError)
"""The errors of a connection that has ended, or that carries something else than frames."""


class Frames:
    """A connection that carries frames. Make it in a running event loop.

    The frames of one turn of the loop are written together: each write is a system call, wakes the
    other end, and makes a record of TLS.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._loop = asyncio.get_running_loop()
        self._said: list[bytes] = []
        self._size = 0  # bytes of the frames that are not written yet

    @property
    def is_gone(self) -> bool:
        """Whether the other end has hung up."""
        return self._writer.is_closing() or self._reader.at_eof()

    def say(self, kind: str, value: object) -> None:
        """Send a frame. Raises `ConnectionResetError` if the other end is gone.

        uvloop has a `RuntimeError` for that, which says nothing else than that.
        """
        if self._writer.is_closing():
            raise ConnectionResetError("the other replica has hung up")
        if not self._said:
            self._loop.call_soon(self._write)
        self._said.append(pack(kind, value))
        self._size += len(self._said[-1])
        if self._size >= WRITTEN_BYTES:  # so that `drain` knows of it
            self._write()

    def _write(self) -> None:
        said, self._said, self._size = b"".join(self._said), [], 0
        if said and not self._writer.is_closing():
            self._writer.write(said)

    async def drain(self) -> None:
        """Wait until the other end takes what it is sent. Raises `OSError` if it is gone."""
        await self._writer.drain()

    async def next(self) -> tuple[str, Any]:
        """The next frame. Raises what `ENDS` has."""
        (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
        if length > MAX_FRAME:
            raise ValueError("a frame is too long")
        kind, value = _decode(await self._reader.readexactly(length))
        return kind, value

    def close(self) -> None:
        """Hang up, once the other end has taken what it is sent."""
        self._write()
        self._writer.close()

    def cut_off(self) -> None:
        """Hang up at once. An end that is stopped would never take what waits to be sent."""
        cut_off(self._writer.transport)


def event_of(value: Any) -> Message:
    """An event as ASGI has it: its headers are pairs."""
    if "headers" in value:
        value["headers"] = [tuple(pair) for pair in value["headers"]]
    return dict(value)


def plain(message: Message) -> dict[str, Any]:
    """An event without what only servers of this process understand."""
    fields = dict(message)
    if "headers" in fields:
        fields["headers"] = [(bytes(name), bytes(value)) for name, value in fields["headers"]]
    if isinstance(fields.get("body"), memoryview):
        fields["body"] = bytes(fields["body"])
    return fields
