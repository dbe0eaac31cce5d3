"""Frames taken apart and put together without anything of ``app``, and strategies for their parts.

Written from the contract: section "Legacy format" and section "v1 format" of Jupyter's WebSocket
kernel wire protocols.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]

DELIMITER = b"<IDS|MSG>"


def join_v1(channel: bytes, parts: Sequence[bytes]) -> bytes:
    """Little-endian 64-bit count and offsets, the channel's name, the parts."""
    pieces = [channel, *parts]
    offsets = [8 * (len(pieces) + 2)]
    for piece in pieces:
        offsets.append(offsets[-1] + len(piece))
    return struct.pack(f"<{len(offsets) + 1}Q", len(offsets), *offsets) + b"".join(pieces)


def split_v1(frame: bytes) -> list[bytes]:
    """The channel's name and the parts of a v1 frame, every number in it checked."""
    count = int.from_bytes(frame[:8], "little")
    numbers = [int.from_bytes(frame[8 * i : 8 * i + 8], "little") for i in range(1, count + 1)]
    assert numbers[0] == 8 * (count + 1)
    assert numbers[-1] == len(frame)
    assert numbers == sorted(numbers)
    return [frame[numbers[i] : numbers[i + 1]] for i in range(count - 1)]


def join_legacy(envelope: bytes, buffers: Sequence[bytes] = ()) -> bytes:
    """Big-endian 32-bit count and offsets, the envelope, the buffers."""
    pieces = [envelope, *buffers]
    offset = 4 * (len(pieces) + 1)
    table = struct.pack(">I", len(pieces))
    for piece in pieces:
        table += struct.pack(">I", offset)
        offset += len(piece)
    return table + b"".join(pieces)


def split_legacy(frame: bytes) -> list[bytes]:
    """The envelope and the buffers of a legacy binary frame, every number in it checked."""
    count = int.from_bytes(frame[:4], "big")
    numbers = [int.from_bytes(frame[4 * i : 4 * i + 4], "big") for i in range(1, count + 1)]
    assert numbers[0] == 4 * (count + 1)
    numbers.append(len(frame))
    assert numbers == sorted(numbers)
    return [frame[numbers[i] : numbers[i + 1]] for i in range(count)]


def dump(value: object) -> bytes:
    """JSON as many programs write it: spaces, no escapes."""
    return json.dumps(value, ensure_ascii=False).encode()


def load(part: bytes | memoryview) -> Any:
    """JSON that must be UTF-8."""
    return json.loads(str(part, "utf-8"))


HEADER: Json = {
    "msg_id": "5d1f-1",
    "msg_type": "execute_request",
    "session": "5d1f",
    "username": "ada",
    "date": "2026-11-22T14:49:48.797413Z",
    "version": "5.3",
}
"""A header that leaves nothing out."""

channels = st.sampled_from(["shell", "control", "stdin", "iopub"])

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)
objects = st.dictionaries(st.text(max_size=10), values, max_size=4)
texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=10
)
headers = st.builds(
    lambda extra, fields: {**extra, **fields},
    objects,
    st.fixed_dictionaries(dict.fromkeys(HEADER, texts)),
)
"""Complete headers, with fields that nobody knows."""

json_parts = st.tuples(
    headers.map(dump),
    st.just(b"{}") | headers.map(dump),
    objects.map(dump),
    objects.map(dump),
)
buffers = st.lists(st.binary(max_size=64), max_size=6)
