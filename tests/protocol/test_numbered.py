"""Frames that tell their message's number in the log, in both framings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol import legacy, v1, wire
from app.protocol.messages import Message
from app.protocol.signing import Signer
from tests.protocol.raw import (
    DELIMITER,
    HEADER,
    Json,
    buffers,
    channels,
    dump,
    json_parts,
    load,
    split_legacy,
    split_v1,
)

Parts = tuple[bytes, bytes, bytes, bytes]

numbers = st.integers(1, 2**63)


def numbered(channel: str, parts: list[bytes], number: int) -> Message:
    message = wire.unpack(channel, [DELIMITER, b"", *parts], Signer(b""))
    message.seq = number
    return message


def envelope_of(frame: bytes, buffer_count: int) -> Json:
    envelope = load(split_legacy(frame)[0] if buffer_count else frame)
    assert isinstance(envelope, dict)
    return envelope


@given(channels, json_parts, buffers, numbers)
def test_the_legacy_envelope_has_one_key_more(
    channel: str, parts: Parts, extra: list[bytes], number: int
) -> None:
    message = numbered(channel, [*parts, *extra], number)

    frame = legacy.encode_numbered(message)

    plain = envelope_of(legacy.encode(message), len(extra))
    assert envelope_of(frame, len(extra)) == {**plain, "seq": number}
    if extra:
        assert split_legacy(frame)[1:] == extra


@given(channels, json_parts, buffers, numbers)
def test_the_metadata_of_v1_have_one_key_more(
    channel: str, parts: Parts, extra: list[bytes], number: int
) -> None:
    message = numbered(channel, [*parts, *extra], number)

    name, header, parent, metadata, *rest = split_v1(v1.encode_numbered(message))

    assert (name, header, parent) == (channel.encode(), *parts[:2])
    assert load(metadata) == {"kernelkeep_seq": number, **load(parts[2])}
    assert rest == [parts[3], *extra]


@pytest.mark.parametrize("metadata", [b"{}", b"{ }", b" {\n}\t", b' { "a": {} } ', b'{"a":NaN}'])
def test_white_space_in_metadata_does_no_harm(metadata: bytes) -> None:
    message = numbered("iopub", [dump(HEADER), b"{}", metadata, b"{}"], 7)

    frame = v1.encode_numbered(message)

    told = load(split_v1(frame)[3])
    assert told.pop("kernelkeep_seq") == 7
    assert set(told) == set(load(metadata))
    assert v1.restore(frame).header == message.header


def test_a_numbered_frame_is_not_the_one_that_others_get() -> None:
    message = numbered("iopub", [dump(HEADER), b"{}", b"{}", b"{}"], 7)
    before = message.frame

    legacy.encode_numbered(message)
    v1.encode_numbered(message)

    assert message.legacy is None
    assert message.frame is before
