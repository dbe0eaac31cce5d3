"""The ``v1.kernel.websocket.jupyter.org`` framing: packed offsets, then the kernel's own bytes.

Layout, all integers little-endian unsigned 64-bit: the number ``n`` of offsets, the ``n`` offsets
from the start of the frame, the channel's name, the four JSON parts, any buffers. Part ``i`` ends
where the next begins, and the last offset is the frame's length [jupyter_server documentation,
"WebSocket kernel wire protocols"].
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import Struct, pack, unpack_from
from typing import Final

from .frames import MAX_PARTS, FrameError
from .messages import (
    Buffer,
    ClientMessage,
    Message,
    checked_object,
    complete_header,
    decode_header,
)

__all__ = ["SUBPROTOCOL", "begin", "decode", "encode", "encode_numbered", "restore", "size_of"]

SUBPROTOCOL: Final = "v1.kernel.websocket.jupyter.org"

_WITHOUT_BUFFERS: Final = Struct("<7Q")  # n = 6: channel, four parts, end
_OBJECTS: Final = ("parent_header", "metadata", "content")
_CHANNEL_NAMES: Final = {name: name.encode() for name in ("shell", "control", "stdin", "iopub")}


def encode(channel: str, parts: Sequence[Buffer]) -> tuple[bytes, tuple[int, ...]]:
    """Frame ``parts`` (four JSON parts, then buffers); return the frame and its offsets."""
    name = _CHANNEL_NAMES[channel]
    # Nearly every message has no buffers. This case is written out, as it runs for each message.
    if len(parts) == 4:
        header, parent, metadata, content = parts
        start = 56 + len(name)
        second = start + len(header)
        third = second + len(parent)
        fourth = third + len(metadata)
        end = fourth + len(content)
        bounds: tuple[int, ...] = (56, start, second, third, fourth, end)
        table = _WITHOUT_BUFFERS.pack(6, 56, start, second, third, fourth, end)
        return b"".join((table, name, header, parent, metadata, content)), bounds
    table, offsets = _table(name, parts)
    return b"".join((table, name, *parts)), tuple(offsets)


def begin(channel: str, parts: Sequence[Buffer]) -> bytes:
    """The beginning of the frame of ``parts``: the content and the buffers are to follow it."""
    name = _CHANNEL_NAMES[channel]
    table, _ = _table(name, parts)
    return b"".join((table, name, *parts[:3]))


def _table(name: bytes, parts: Sequence[Buffer]) -> tuple[bytes, list[int]]:
    offset = 8 * (len(parts) + 3)
    offsets = [offset]
    for part in (name, *parts):
        offset += len(part)
        offsets.append(offset)
    return pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets), offsets


def encode_numbered(message: Message) -> bytes:
    """The frame of a message with its number in the log as ``kernelkeep_seq`` in the metadata.

    This framing has no field for the number. In metadata clients accept keys that they do not know.
    """
    parts = [message.part(index) for index in range(4 + message.buffer_count)]
    # The metadata of every message is a JSON object (`wire.unpack` checks it). Its opening bracket
    # is replaced by that of ``number``.
    number = b'{"kernelkeep_seq":%d' % message.seq
    rest = bytes(parts[2]).strip()[1:].lstrip()
    more = rest if rest == b"}" else b"," + rest
    return encode(message.channel, [*parts[:2], number + more, *parts[3:]])[0]


def decode(frame: bytes, session: str) -> ClientMessage:
    """Read a client's frame; ``session`` completes a header that names no session.

    Raises `FrameError` for a table that does not fit the frame (this is checked before memory is
    allocated for it), and `MalformedMessage` for a header that cannot be understood, or another
    part that is no JSON object.
    """
    if len(frame) < 8:
        raise FrameError("a v1 frame starts with eight bytes that count its offsets")
    (count,) = unpack_from("<Q", frame)
    if count < 6:
        raise FrameError(f"a v1 frame has at least 6 offsets, not {count}")
    # Both bounds are checked before the table is read: the client has chosen `count`, up to 2**64.
    if count > len(frame) // 8 - 1:
        raise FrameError("the table of offsets is longer than the frame")
    if count > MAX_PARTS + 2:
        raise FrameError(f"a frame has at most {MAX_PARTS} parts")
    offsets = unpack_from(f"<{count}Q", frame, 8)
    previous = 8 * (count + 1)
    for offset in offsets:
        if offset < previous:
            raise FrameError("offsets overlap or run backwards")
        previous = offset
    if previous != len(frame):
        raise FrameError("the last offset is not the frame's length")
    view = memoryview(frame)
    try:
        channel = str(view[offsets[0] : offsets[1]], "utf-8")
    except UnicodeDecodeError:
        raise FrameError("the channel's name is not UTF-8") from None
    parts: list[Buffer] = [view[start:end] for start, end in zip(offsets[1:], offsets[2:])]
    parts[0], header = complete_header(parts[0], session)
    parts[1:4] = map(checked_object, _OBJECTS, parts[1:4])
    return ClientMessage(channel, header, parts)


def size_of(data: bytes, position: int) -> int:
    """The bytes of the frame that begins at ``position``, by its table. Raises `FrameError`."""
    left = len(data) - position
    count: int = unpack_from("<Q", data, position)[0] if left >= 8 else 0
    if not 6 <= count <= left // 8 - 1:
        raise FrameError("the table of offsets does not fit the frame")
    size: int = unpack_from("<Q", data, position + 8 * count)[0]
    return size


def restore(frame: bytes) -> Message:
    """The message of a frame that `encode` has made. Raises `ValueError` if it is damaged."""
    if size_of(frame, 0) != len(frame):
        raise FrameError("the frame is cut off")
    (count,) = unpack_from("<Q", frame)
    bounds = unpack_from(f"<{count}Q", frame, 8)
    if bounds[0] != 8 * (count + 1) or list(bounds) != sorted(bounds):
        raise FrameError("the table of offsets is damaged")
    channel = frame[bounds[0] : bounds[1]].decode()
    view = memoryview(frame)
    header = decode_header(view[bounds[1] : bounds[2]])
    parent = decode_header(view[bounds[2] : bounds[3]], "parent_header")
    return Message(channel, frame, header, parent)
