"""Both WebSocket framings of the kernel's channels, written once more from the contract.

Nothing here comes from ``app``, and decoding is strict, so that a server that writes what only it
can read is found out.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

from websockets.typing import Subprotocol

Json = dict[str, Any]
FramingName = Literal["legacy", "v1"]

FRAMINGS: tuple[FramingName, ...] = ("legacy", "v1")
V1_SUBPROTOCOL = Subprotocol("v1.kernel.websocket.jupyter.org")

LEGACY_KEYS = {
    "header",
    "msg_id",
    "msg_type",
    "parent_header",
    "metadata",
    "content",
    "channel",
}


class FramingError(AssertionError):
    """A frame from the server that is not what the contract says."""


@dataclass
class Message:
    """A Jupyter message, as it travels on a WebSocket."""

    channel: str
    header: Json
    parent_header: Json = field(default_factory=dict)
    metadata: Json = field(default_factory=dict)
    content: Json = field(default_factory=dict)
    buffers: list[bytes] = field(default_factory=list)
    seq: int | None = None  # its number in the log, where the client has asked for that

    @property
    def msg_type(self) -> str:
        return str(self.header["msg_type"])

    @property
    def msg_id(self) -> str:
        return str(self.header["msg_id"])

    @property
    def parent_id(self) -> str | None:
        return self.parent_header.get("msg_id")

    @property
    def state(self) -> str | None:
        """The execution state that a status message tells."""
        return self.content["execution_state"] if self.msg_type == "status" else None


def encode_legacy(parts: Json, buffers: Sequence[bytes] = ()) -> str | bytes:
    """A text frame, or with buffers a binary one: big-endian 32-bit count and offsets."""
    text = json.dumps(parts)
    if not buffers:
        return text
    return _join(">I", [text.encode(), *buffers])


def decode_legacy(frame: str | bytes) -> Message:
    """Raises FramingError."""
    if isinstance(frame, str):
        parts = _loads(frame)
        _check(parts.pop("buffers", None) == [], "a text frame has an empty list of buffers")
        buffers: list[bytes] = []
    else:
        text, *buffers = _split(">I", frame)
        parts = _loads(text)
    seq = parts.pop("seq", None)
    _check(set(parts) == LEGACY_KEYS, f"keys are {sorted(parts)}")
    for name in ("msg_id", "msg_type"):
        _check(parts.pop(name) == parts["header"][name], f"{name} differs from the header's")
    return Message(**parts, buffers=buffers, seq=seq)


def encode_v1(message: Message) -> bytes:
    """A binary frame: little-endian 64-bit count and offsets, the last one the frame's length."""
    parts = (message.header, message.parent_header, message.metadata, message.content)
    encoded = [message.channel.encode(), *(json.dumps(part).encode() for part in parts)]
    return _join("<Q", [*encoded, *message.buffers], with_end=True)


def decode_v1(frame: str | bytes) -> Message:
    """Raises FramingError."""
    _check(isinstance(frame, bytes), "a text frame")
    assert isinstance(frame, bytes)
    parts = _split("<Q", frame, with_end=True)
    _check(len(parts) >= 5, "fewer than a channel and four JSON parts")
    header, parent_header, metadata, content = map(_loads, parts[1:5])
    seq = metadata.get("kernelkeep_seq")
    return Message(parts[0].decode(), header, parent_header, metadata, content, parts[5:], seq)


def _join(integer: str, parts: list[bytes], *, with_end: bool = False) -> bytes:
    count = len(parts) + with_end
    offsets = [struct.calcsize(integer) * (count + 1)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    table = struct.pack(f"{integer[0]}{count + 1}{integer[1]}", count, *offsets[:count])
    return b"".join([table, *parts])


def _split(integer: str, frame: bytes, *, with_end: bool = False) -> list[bytes]:
    size = struct.calcsize(integer)
    _check(len(frame) >= size, "shorter than its count")
    (count,) = struct.unpack_from(integer, frame)
    _check(count > 0 and size * (count + 1) <= len(frame), f"{count} offsets do not fit")
    offsets = list(struct.unpack_from(f"{integer[0]}{count}{integer[1]}", frame, size))
    _check(offsets[0] == size * (count + 1), f"the first part is at {offsets[0]}")
    _check(not with_end or offsets[-1] == len(frame), f"the last offset is {offsets[-1]}")
    if not with_end:
        offsets.append(len(frame))
    _check(offsets == sorted(offsets), f"offsets are not ascending: {offsets}")
    return [frame[start:end] for start, end in pairwise(offsets)]


def _loads(text: str | bytes) -> Json:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FramingError(f"{error}: {text[:200]!r}") from error
    _check(isinstance(value, dict), "not an object")
    assert isinstance(value, dict)
    return value


def _check(truth: bool, what: str) -> None:
    if not truth:
        raise FramingError(what)
