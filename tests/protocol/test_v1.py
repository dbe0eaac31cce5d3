"""The v1 framing: exact bytes, round trips, and frames that are none."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given

from app.protocol import v1
from app.protocol.frames import MAX_PARTS, FrameError
from app.protocol.messages import MalformedMessage
from tests.protocol.raw import HEADER, buffers, channels, dump, join_v1, json_parts, load, split_v1

Parts = tuple[bytes, bytes, bytes, bytes]

HEADER_PART = json.dumps(HEADER).encode()
PARTS = (HEADER_PART, b"{}", b'{"m":1}', b'{"code":"1"}')


def table(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def test_a_message_without_buffers_has_six_offsets() -> None:
    frame, bounds = v1.encode("shell", (b'{"h":0}', b"{}", b'{"m":1}', b'{"code":"1"}'))

    assert frame[:24].hex(" ", 8) == "0600000000000000 3800000000000000 3d00000000000000"
    assert frame[24:56] == table(0x44, 0x46, 0x4D, 0x59)
    assert frame[56:] == b'shell{"h":0}{}{"m":1}{"code":"1"}'
    assert bounds == (0x38, 0x3D, 0x44, 0x46, 0x4D, 0x59)
    assert len(frame) == 0x59


def test_each_buffer_adds_an_offset() -> None:
    frame, bounds = v1.encode("iopub", (b"{}", b"{}", b"{}", b"{}", b"abc", b"", b"\xff"))

    assert frame[:80] == table(9, 80, 85, 87, 89, 91, 93, 96, 96, 97)
    assert frame[80:] == b"iopub{}{}{}{}abc\xff"
    assert bounds == (80, 85, 87, 89, 91, 93, 96, 96, 97)


def test_parts_may_be_views_of_other_memory() -> None:
    views = [memoryview(part) for part in PARTS]

    assert v1.encode("shell", views) == v1.encode("shell", PARTS)


@given(channels, json_parts, buffers)
def test_what_is_encoded_is_the_kernels_own_bytes(
    channel: str, parts: Parts, extra: list[bytes]
) -> None:
    frame, bounds = v1.encode(channel, [*parts, *extra])

    assert split_v1(frame) == [channel.encode(), *parts, *extra]
    assert bounds == struct.unpack_from(f"<{len(bounds)}Q", frame, 8)


@given(channels, json_parts, buffers)
def test_what_a_client_sends_is_read_unchanged(
    channel: str, parts: Parts, extra: list[bytes]
) -> None:
    message = v1.decode(join_v1(channel.encode(), [*parts, *extra]), "mine")

    header = json.loads(parts[0])
    assert message.channel == channel
    assert [bytes(part) for part in message.parts] == [*parts, *extra]
    assert message.header.msg_id == header["msg_id"]
    assert message.header.msg_type == header["msg_type"]
    assert message.header.session == header["session"]
    assert message.size == sum(map(len, [*parts, *extra]))


@given(json_parts, buffers)
def test_both_directions_agree(parts: Parts, extra: list[bytes]) -> None:
    frame, _ = v1.encode("control", [*parts, *extra])

    message = v1.decode(frame, "mine")

    assert [bytes(part) for part in message.parts] == [*parts, *extra]


def test_an_incomplete_header_is_completed_and_the_rest_untouched() -> None:
    rest = [b"{ }", b'{"a": "\\u00e4"}', b'{"b":NaN}', b"\xff"]
    message = v1.decode(join_v1(b"shell", [b'{"msg_type":"t"}', *rest]), "mine")

    assert load(message.parts[0])["session"] == "mine"
    assert [bytes(part) for part in message.parts[1:]] == rest


@pytest.mark.parametrize(("index", "name"), [(1, "parent_header"), (2, "metadata"), (3, "content")])
def test_a_part_that_no_kernel_can_read_is_refused(index: int, name: str) -> None:
    parts = [*PARTS]
    parts[index] = b"{"

    with pytest.raises(MalformedMessage, match=f"^{name}: "):
        v1.decode(join_v1(b"shell", parts), "mine")


@pytest.mark.parametrize("name", ["", "hb", "zzz", "chännel"])
def test_a_channel_that_nobody_knows_is_not_the_frames_fault(name: str) -> None:
    assert v1.decode(join_v1(name.encode(), PARTS), "mine").channel == name


def test_a_channel_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(FrameError, match="UTF-8"):
        v1.decode(join_v1(b"\xff\xfe", PARTS), "mine")


@pytest.mark.parametrize("length", range(8))
def test_a_frame_without_a_count_is_refused(length: int) -> None:
    with pytest.raises(FrameError, match="eight bytes"):
        v1.decode(b"\x06" * length, "mine")


@pytest.mark.parametrize("count", range(6))
def test_fewer_than_four_parts_are_refused(count: int) -> None:
    frame = table(count, *range(8 * (count + 1), 8 * (count + 1) + count)) + b"." * 64

    with pytest.raises(FrameError, match=f"at least 6 offsets, not {count}"):
        v1.decode(frame, "mine")


@pytest.mark.parametrize("count", [7, 8, 2**31, 2**32, 2**63, 2**64 - 1])
def test_a_table_longer_than_the_frame_is_refused(count: int) -> None:
    frame = table(count, 56, 56, 56, 56, 56, 56)

    with pytest.raises(FrameError, match="longer than the frame"):
        v1.decode(frame, "mine")


@pytest.mark.parametrize(
    ("offsets", "why"),
    [
        ((55, 61, 63, 65, 67, 69), "overlap"),
        ((0, 61, 63, 65, 67, 69), "overlap"),
        ((56, 61, 60, 65, 67, 69), "backwards"),
        ((56, 61, 63, 65, 67, 66), "backwards"),
        ((56, 61, 63, 65, 67, 68), "length"),
        ((56, 61, 63, 65, 67, 70), "length"),
        ((56, 61, 63, 65, 67, 2**64 - 1), "length"),
        ((2**64 - 1,) * 6, "length"),
    ],
)
def test_offsets_that_do_not_fit_are_refused(offsets: tuple[int, ...], why: str) -> None:
    frame = table(6, *offsets) + b"shell{}{}{}{}"
    assert len(frame) == 69

    with pytest.raises(FrameError, match=why):
        v1.decode(frame, "mine")


def test_the_number_of_parts_is_bounded() -> None:
    most = [b""] * (MAX_PARTS - 4)

    assert len(v1.decode(join_v1(b"shell", [*PARTS, *most]), "mine").parts) == MAX_PARTS
    with pytest.raises(FrameError, match="at most"):
        v1.decode(join_v1(b"shell", [*PARTS, *most, b""]), "mine")


@pytest.mark.parametrize("header", [b"", b"{", b"[]", b"null", b"{}", b"\xff", dump({"a": 1})])
def test_a_header_that_says_nothing_is_refused(header: bytes) -> None:
    with pytest.raises(MalformedMessage, match=r"^header: "):
        v1.decode(join_v1(b"shell", [header, *PARTS[1:]]), "mine")
