"""Messages made again from their v1 frames, as they come back from disk, damaged ones included."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol import legacy, v1, wire
from app.protocol.frames import FrameError
from app.protocol.messages import MalformedMessage
from app.protocol.signing import Signer
from tests.protocol.raw import DELIMITER, HEADER, buffers, channels, dump, join_v1, json_parts

Parts = tuple[bytes, bytes, bytes, bytes]

PARTS = [dump(HEADER), dump({**HEADER, "msg_id": "asked"}), b'{"m":1}', b'{"code":"1"}']
FRAME = join_v1(b"iopub", [*PARTS, b"buffer"])


@given(channels, json_parts, buffers)
def test_a_restored_message_is_the_one_that_was_kept(
    channel: str, parts: Parts, extra: list[bytes]
) -> None:
    kept = wire.unpack(channel, [DELIMITER, b"", *parts, *extra], Signer(b""))

    restored = v1.restore(kept.frame)

    assert (restored.channel, restored.frame) == (kept.channel, kept.frame)
    assert (restored.header, restored.parent) == (kept.header, kept.parent)
    assert legacy.encode(restored) == legacy.encode(kept)


def test_a_frame_that_is_cut_off_is_refused() -> None:
    for length in range(len(FRAME)):
        with pytest.raises(FrameError):
            v1.restore(FRAME[:length])


@pytest.mark.parametrize("count", [0, 5, 2**32, 2**64 - 1])
def test_a_table_that_does_not_fit_is_refused(count: int) -> None:
    with pytest.raises(FrameError, match="does not fit"):
        v1.restore(struct.pack("<Q", count) + FRAME[8:])


@pytest.mark.parametrize("index", range(6))
@pytest.mark.parametrize("offset", [0, 2**63])
def test_offsets_that_are_damaged_are_refused(index: int, offset: int) -> None:
    at = 8 * (index + 1)

    with pytest.raises(FrameError, match="damaged"):
        v1.restore(FRAME[:at] + struct.pack("<Q", offset) + FRAME[at + 8 :])


@pytest.mark.parametrize("header", [b"{", b"[]", b"\xff"])
def test_a_header_that_is_damaged_is_refused(header: bytes) -> None:
    with pytest.raises(MalformedMessage):
        v1.restore(join_v1(b"iopub", [header, *PARTS[1:]]))
    with pytest.raises(MalformedMessage):
        v1.restore(join_v1(b"iopub", [PARTS[0], header, *PARTS[2:]]))


@given(st.integers(0, len(FRAME) - 1), st.integers(1, 255))
def test_a_damaged_byte_is_a_value_error_at_worst(index: int, change: int) -> None:
    damaged = FRAME[:index] + bytes([FRAME[index] ^ change]) + FRAME[index + 1 :]

    try:
        message = v1.restore(damaged)
    except ValueError:
        return
    assert message.frame == damaged
    assert b"".join(bytes(message.part(i)) for i in range(5)) == damaged[message.bounds[1] :]
