"""The legacy framing towards clients: exact bytes, and envelopes spliced from the kernel's JSON."""

from __future__ import annotations

import json
import mmap
import struct
from collections.abc import Sequence

import pytest
from hypothesis import given

from app.protocol import legacy, wire
from app.protocol.frames import FrameError
from app.protocol.messages import Header, Message
from app.protocol.signing import Signer
from tests.protocol.raw import DELIMITER, buffers, channels, json_parts, split_legacy

Parts = tuple[bytes, bytes, bytes, bytes]

HEADER = b'{"msg_id": "1", "msg_type": "stream", "session": "s"}'


def from_kernel(channel: str, parts: Sequence[bytes]) -> Message:
    return wire.unpack(channel, [DELIMITER, b"", *parts], Signer(b""))


def envelope_of(message: Message) -> dict[str, object]:
    envelope = json.loads(legacy.encode(message))
    assert isinstance(envelope, dict)
    return envelope


def test_a_message_without_buffers_is_one_json_text() -> None:
    message = from_kernel("iopub", [HEADER, b"{}", b'{"m":1}', b'{"text":"\xc3\xa9"}'])

    assert legacy.encode(message) == (
        b'{"header":{"msg_id": "1", "msg_type": "stream", "session": "s"},'
        b'"msg_id":"1","msg_type":"stream","parent_header":{},"metadata":{"m":1},'
        b'"content":{"text":"\xc3\xa9"},"channel":"iopub","buffers":[]}'
    )


def test_a_message_with_buffers_is_laid_out_as_the_contract_shows() -> None:
    def with_text(text: str) -> bytes:
        content = json.dumps({"text": text}).encode()
        return legacy.encode(from_kernel("iopub", [HEADER, b"{}", b"{}", content, b"abc", b"defg"]))

    padding = 567 - (len(with_text("")) - 16 - 7)
    frame = with_text("x" * padding)

    assert frame[:16].hex(" ", 4) == "00000003 00000010 00000247 0000024a"
    assert struct.unpack_from(">4I", frame) == (3, 16, 583, 586)
    assert frame[583:] == b"abcdefg"
    assert json.loads(frame[16:583])["content"] == {"text": "x" * padding}


def test_the_envelope_of_a_binary_frame_names_the_channel_and_no_buffers() -> None:
    message = from_kernel("shell", [HEADER, b"{}", b"{}", b"{}", b""])

    envelope, buffer = split_legacy(legacy.encode(message))

    assert buffer == b""
    assert set(json.loads(envelope)) == {
        *("header", "msg_id", "msg_type", "parent_header", "metadata", "content", "channel")
    }
    assert json.loads(envelope)["channel"] == "shell"


@given(channels, json_parts)
def test_a_spliced_envelope_says_what_the_message_says(channel: str, parts: Parts) -> None:
    header, parent, metadata, content = map(json.loads, parts)

    assert envelope_of(from_kernel(channel, parts)) == {
        "header": header,
        "msg_id": header["msg_id"],
        "msg_type": header["msg_type"],
        "parent_header": parent,
        "metadata": metadata,
        "content": content,
        "channel": channel,
        "buffers": [],
    }


@given(channels, json_parts, buffers.filter(bool))
def test_buffers_follow_the_envelope_unchanged(
    channel: str, parts: Parts, extra: list[bytes]
) -> None:
    envelope, *received = split_legacy(legacy.encode(from_kernel(channel, [*parts, *extra])))

    assert received == extra
    whole = json.loads(envelope)
    names = ("header", "parent_header", "metadata", "content")
    assert [whole[name] for name in names] == [json.loads(part) for part in parts]
    assert whole["channel"] == channel


@pytest.mark.parametrize(
    "content",
    [
        b'{"x": NaN, "y": -Infinity}',
        rb'{"half": "\ud83d"}',
        b'{"long": 123456789012345678901234567890, "exact": 0.10000000000000000001}',
        b' {"spaces": [ ] }\n',
    ],
)
def test_the_kernels_own_json_is_not_written_anew(content: bytes) -> None:
    message = from_kernel("iopub", [HEADER, b"{}", b"{}", content])

    assert b'"content":' + content + b',"channel"' in legacy.encode(message)


def test_a_frame_is_built_once() -> None:
    message = from_kernel("iopub", [HEADER, b"{}", b"{}", b"{}"])

    frame = legacy.encode(message)

    assert message.legacy is frame
    assert legacy.encode(message) is frame


def test_a_frame_that_passes_4_gib_is_refused() -> None:
    # Memory that is never touched costs nothing.
    with mmap.mmap(-1, 2**32) as memory:
        memory[:64] = struct.pack("<8Q", 7, 64, 69, 71, 73, 75, 77, len(memory))
        frame: bytes = memory  # type: ignore[assignment]
        message = Message("shell", frame, Header(msg_id="1", msg_type="t"), Header())
        with pytest.raises(FrameError, match="4 GiB"):
            legacy.encode(message)
        assert message.legacy is None
