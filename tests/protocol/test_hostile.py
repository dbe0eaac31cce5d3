"""Frames from clients that mean harm: an error that says why, and never more memory than a frame.

Both framings, with the same promises: nothing but `FrameError` and `MalformedMessage` comes out,
and what is read lies within the frame.
"""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.protocol import legacy, v1
from app.protocol.frames import MAX_PARTS, FrameError
from app.protocol.messages import ClientMessage, MalformedMessage
from tests.protocol.raw import HEADER, dump, join_legacy, join_v1, load

Decode = Callable[[bytes, str], ClientMessage]

COMPLETION = 400  # bytes that filling in a header may add
FIXED_MEMORY = 16 * 2**20  # what the largest number of parts takes
LENIENT_MEMORY = 40 * 2**20  # what a text of 1 MiB takes when it must be read as Python does

V1_FRAME = join_v1(b"shell", [dump(HEADER), b"{}", b"{}", b'{"code":"1"}', b"buffer", b""])
BINARY_FRAME = join_legacy(
    dump({"header": HEADER, "channel": "shell", "content": {"code": "1"}}), [b"buffer", b""]
)
TEXT_FRAME = dump({"header": HEADER, "channel": "shell", "buffers": [], "content": {"code": "1"}})


def decode_text(frame: bytes, session: str) -> ClientMessage:
    """As a server hands on a text frame; half a surrogate pair is what no client can send."""
    return legacy.decode_text(frame.decode("utf-8", "surrogateescape"), session)


DECODERS: list[tuple[Decode, bytes]] = [
    (v1.decode, V1_FRAME),
    (legacy.decode_binary, BINARY_FRAME),
    (decode_text, TEXT_FRAME),
]
each_decoder = pytest.mark.parametrize(
    ("decode", "valid"), DECODERS, ids=["v1", "legacy-binary", "legacy-text"]
)


def check(decode: Decode, frame: bytes) -> None:
    try:
        message = decode(frame, "mine")
    except (FrameError, MalformedMessage):
        return
    assert len(message.parts) >= 4
    # Parts that were left out are read as {}; what Python must read is written anew, with spaces.
    assert message.size <= 2 * len(frame) + COMPLETION
    header = load(message.parts[0])
    assert (header["msg_id"], header["msg_type"]) == (
        message.header.msg_id,
        message.header.msg_type,
    )
    assert header["session"] == message.header.session


@st.composite
def mutations(draw: st.DrawFn, frame: bytes) -> bytes:
    """A valid frame with a few bytes changed, cut out, doubled or put in."""
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(frame)))
        end = draw(st.integers(start, min(len(frame), start + 40)))
        middle = draw(
            st.just(b"")
            | st.just(frame[start:end] * 2)
            | st.binary(max_size=12)
            | st.sampled_from([b"\xff" * 8, b"\0" * 8, b'"', b"{", b"[" * 2000, b"null", b"NaN,"])
        )
        frame = frame[:start] + middle + frame[end:]
    return frame


@st.composite
def tables(draw: st.DrawFn, integer: str) -> bytes:
    """A table of offsets, mostly plausible, and something behind it."""
    largest = 2 ** (8 * struct.calcsize(integer)) - 1
    numbers = st.integers(0, 80) | st.integers(0, largest) | st.just(largest)
    offsets = draw(st.lists(numbers, max_size=10))
    if draw(st.booleans()):
        offsets.sort()
    count = draw(st.just(len(offsets)) | numbers)
    frame = b"".join(struct.pack(integer, number) for number in [count, *offsets])
    return frame + draw(st.binary(max_size=40))


@each_decoder
def test_the_frames_that_are_mutated_here_are_valid(decode: Decode, valid: bytes) -> None:
    message = decode(valid, "mine")

    assert message.header.msg_id == HEADER["msg_id"]
    assert bytes(message.parts[3]).replace(b" ", b"") == b'{"code":"1"}'


@each_decoder
@given(data=st.data())
def test_mutated_frames_are_read_or_refused(
    decode: Decode, valid: bytes, data: st.DataObject
) -> None:
    check(decode, data.draw(mutations(valid)))


@each_decoder
def test_frames_cut_anywhere_are_refused(decode: Decode, valid: bytes) -> None:
    for length in range(len(valid) - len(b"buffer")):
        with pytest.raises((FrameError, MalformedMessage)):
            decode(valid[:length], "mine")


@each_decoder
@given(frame=st.binary(max_size=300))
def test_arbitrary_bytes_are_read_or_refused(decode: Decode, valid: bytes, frame: bytes) -> None:
    check(decode, frame)


@given(st.text(max_size=200))
@example("\ud800")
@example('{"header":{"msg_type":"t"},"content":"\udfff"}')
def test_arbitrary_text_is_read_or_refused(text: str) -> None:
    check(lambda _, session: legacy.decode_text(text, session), text.encode("utf-8", "replace"))


@given(tables("<Q"))
def test_arbitrary_tables_of_v1_are_read_or_refused(frame: bytes) -> None:
    check(v1.decode, frame)


@given(tables(">I"))
def test_arbitrary_tables_of_the_legacy_framing_are_read_or_refused(frame: bytes) -> None:
    check(legacy.decode_binary, frame)


def peak_of(decode: Decode, frame: bytes) -> int:
    """Bytes that reading a frame takes at its worst."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        check(decode, frame)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before


def v1_table(count: int, offset: int, offsets: int) -> bytes:
    return struct.pack("<Q", count) + struct.pack("<Q", offset) * offsets


def legacy_table(count: int, offset: int, offsets: int) -> bytes:
    return struct.pack(">I", count) + struct.pack(">I", offset) * offsets


LONG = 200_000
MANY_LISTS = b"[" + b"[]," * 400_000 + b"[]]"
MANY_NAMES = b"{" + b",".join(b'"%d":0' % number for number in range(200_000)) + b"}"


@pytest.mark.parametrize(
    ("decode", "frame"),
    [
        (v1.decode, b"\xff" * 8),
        (v1.decode, b"\xff" * 2**20),
        (v1.decode, v1_table(2**64 - 1, 56, 6)),
        (v1.decode, v1_table(2**40, 56, LONG)),
        (v1.decode, v1_table(LONG, 8 * (LONG + 1), LONG)),
        (v1.decode, v1_table(MAX_PARTS + 2, 8 * (MAX_PARTS + 3), MAX_PARTS + 2)),
        (v1.decode, join_v1(b"shell", [dump(HEADER), *[b"{}"] * (MAX_PARTS - 1)])),
        (v1.decode, join_v1(b"s" * 2**21, [dump(HEADER), b"", b"", b""])),
        (
            v1.decode,
            join_v1(b"shell", [b'{"msg_type":"t","x":' + MANY_LISTS + b"}", b"", b"", b""]),
        ),
        (v1.decode, join_v1(b"shell", [dump(HEADER), MANY_LISTS, MANY_NAMES, b"[" * 2**20])),
        (legacy.decode_binary, b"\xff" * 8),
        (legacy.decode_binary, b"\xff" * 2**20),
        (legacy.decode_binary, legacy_table(2**32 - 1, 8, LONG)),
        (legacy.decode_binary, legacy_table(LONG, 4 * (LONG + 1), LONG)),
        (legacy.decode_binary, legacy_table(MAX_PARTS, 4 * (MAX_PARTS + 1), MAX_PARTS)),
        (legacy.decode_binary, join_legacy(dump({"header": HEADER}), [b""] * (MAX_PARTS - 1))),
        (decode_text, b"[" * 2**21),
        (decode_text, b'{"header":' * 2**18),
        (decode_text, b'"' + b"\\u0000" * 2**19 + b'"'),
        (decode_text, b'{"header":{"msg_type":"t"},"buffers":' + MANY_LISTS + b"}"),
        (decode_text, b'{"header":{"msg_type":"t"},"content":{"x":' + MANY_LISTS + b"}}"),
        (decode_text, b'{"header":{"msg_type":"t","x":' + MANY_LISTS + b"}}"),
        (decode_text, b'{"header":{"msg_type":"t"},"content":{"x":NaN,"y":' + MANY_LISTS + b"}}"),
        (decode_text, b'{"header":{"msg_type":"t"},"more":' + MANY_NAMES + b"}"),
        (decode_text, MANY_NAMES),
    ],
)
def test_reading_takes_little_more_memory_than_the_frame(decode: Decode, frame: bytes) -> None:
    assert peak_of(decode, frame) <= 4 * len(frame) + FIXED_MEMORY


def test_reading_as_python_does_is_bounded() -> None:
    start = b'{"header":{"msg_type":"t"},"content":{"x":NaN,"y":'
    lists = b"[" + b"[]," * ((2**20 - len(start) - 10) // 3) + b"[]]"
    frame = start + lists + b"}}"
    assert 2**20 - 10 < len(frame) <= 2**20

    assert peak_of(decode_text, frame) <= LENIENT_MEMORY
