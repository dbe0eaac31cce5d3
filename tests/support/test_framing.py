"""The test kit's own framings, against the bytes that the contract gives as examples."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.framing import (
    FramingError,
    Json,
    Message,
    decode_legacy,
    decode_v1,
    encode_legacy,
    encode_v1,
)

HEADER = {"msg_id": "1", "msg_type": "stream"}
BUFFERS = st.lists(st.binary(max_size=20), max_size=4)


def _legacy_parts(message: Message) -> Json:
    """What a server sends, but for the buffers."""
    parts = {name: value for name, value in vars(message).items() if name != "buffers"}
    return parts | {"msg_id": message.msg_id, "msg_type": message.msg_type}


@given(buffers=BUFFERS)
def test_v1_round_trip(buffers: list[bytes]) -> None:
    message = Message("iopub", HEADER, {"msg_id": "0"}, {"a": 1}, {"text": "ä"}, buffers)
    assert decode_v1(encode_v1(message)) == message


@given(buffers=BUFFERS)
def test_legacy_round_trip(buffers: list[bytes]) -> None:
    message = Message("iopub", HEADER, {"msg_id": "0"}, {"a": 1}, {"text": "ä"}, buffers)
    parts = _legacy_parts(message)
    frame = encode_legacy(parts if buffers else parts | {"buffers": []}, buffers)
    assert isinstance(frame, bytes if buffers else str)
    assert decode_legacy(frame) == message


def test_v1_layout() -> None:
    frame = encode_v1(Message("shell", HEADER))
    assert frame[:24] == struct.pack("<3Q", 6, 56, 61)
    assert frame[56:61] == b"shell"
    assert struct.unpack_from("<Q", frame, 48) == (len(frame),)


def test_legacy_layout() -> None:
    frame = encode_legacy({"header": HEADER}, [b"abc", b"defg"])
    assert isinstance(frame, bytes)
    text = json.dumps({"header": HEADER}).encode()
    assert frame[:16] == struct.pack(">4I", 3, 16, 16 + len(text), 19 + len(text))
    assert frame[16:] == text + b"abcdefg"


@pytest.mark.parametrize(
    "frame",
    [
        "text",
        b"",
        bytes(8),
        b"\xff" * 8,
        struct.pack("<2Q", 1, 16),
        struct.pack("<7Q", 6, 56, 57, 58, 59, 60, 60),
        encode_v1(Message("shell", HEADER))[:-1],
        encode_v1(Message("shell", HEADER)) + b"x",
    ],
)
def test_v1_is_strict(frame: str | bytes) -> None:
    with pytest.raises(FramingError):
        decode_v1(frame)


@pytest.mark.parametrize(
    "change",
    [
        {"buffers": None},
        {"buffers": {}},
        {"msg_id": "other"},
        {"msg_type": "other"},
        {"further": 1},
    ],
)
def test_legacy_text_is_strict(change: Json) -> None:
    parts = _legacy_parts(Message("iopub", HEADER)) | {"buffers": []}
    decode_legacy(json.dumps(parts))
    with pytest.raises(FramingError):
        decode_legacy(json.dumps(parts | change))


def test_legacy_binary_has_no_list_of_buffers() -> None:
    parts = _legacy_parts(Message("iopub", HEADER)) | {"buffers": []}
    with pytest.raises(FramingError):
        decode_legacy(encode_legacy(parts, [b"abc"]))
