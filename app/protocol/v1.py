"""The ``v1.kernel.websocket.jupyter.org`` framing: packed offsets, then the kernel's own bytes.

Layout, all integers little-endian unsigned 64-bit: the number ``n`` of offsets, the ``n`` offsets
from the start of the frame, the channel's name, the four JSON parts, any buffers. Part ``i`` ends
where the next begins, and the last offset is the frame's length [jupyter_server documentation,
"WebSocket kernel wire protocols"].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from struct import Struct, pack, unpack_from
from typing import Final

from app.protocol.frames import MAX_PARTS, FrameError
from app.protocol.messages import Buffer, ClientMessage, complete_header

__all__ = ["SUBPROTOCOL", "decode", "encode"]

SUBPROTOCOL: Final = "v1.kernel.websocket.jupyter.org"

_WITHOUT_BUFFERS: Final = Struct("<7Q")  # n = 6: channel, four parts, end
_CHANNEL_NAMES: Final = {name: name.encode() for name in ("shell", "control", "stdin", "iopub")}


def encode(channel: str, parts: Sequence[Buffer]) -> tuple[bytes, tuple[int, ...]]:
    """Frame ``parts`` (four JSON parts, then buffers); return the frame and its offsets."""
    name = _CHANNEL_NAMES[channel]
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
    offset = 8 * (len(parts) + 3)
    offsets = [offset]
    for part in (name, *parts):
        offset += len(part)
        offsets.append(offset)
    table = pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets)
    return b"".join((table, name, *parts)), tuple(offsets)


def decode(frame: bytes, session: str) -> ClientMessage:
    """Read a client's frame; ``session`` completes a header that names none.

    Raises `FrameError` for a table that does not fit the frame (nothing is allocated for it
    first) and `MalformedMessage` for a header that cannot be understood.
    """
    if len(frame) < 8:
        raise FrameError("a v1 frame starts with eight bytes that count its offsets")
    (count,) = unpack_from("<Q", frame)
    if count < 6:
        raise FrameError(f"a v1 frame has at least 6 offsets, not {count}")
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
    parts: list[Buffer] = [view[start:end] for start, end in pairwise(offsets[1:])]
    parts[0], header = complete_header(parts[0], session)
    return ClientMessage(channel, header, parts)
