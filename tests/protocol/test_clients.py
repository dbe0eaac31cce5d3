"""What clients write in the legacy framing: complete, sloppy, and not at all as they should."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol import legacy
from app.protocol.frames import MAX_PARTS, FrameError
from app.protocol.messages import ClientMessage, MalformedMessage
from tests.protocol.raw import HEADER, Json, buffers, dump, headers, join_legacy, load, objects

MINIMAL: Json = {"header": {"msg_type": "execute_request"}}


def read(envelope: Json) -> ClientMessage:
    return legacy.decode_text(json.dumps(envelope), "mine")


def decoded(message: ClientMessage) -> list[Any]:
    return [load(part) for part in message.parts]


@given(headers, objects, objects, objects, st.text())
def test_a_text_frame_is_read_as_it_was_written(
    header: Json, parent: Json, metadata: Json, content: Json, channel: str
) -> None:
    parts = {"header": header, "parent_header": parent, "metadata": metadata, "content": content}

    message = read({**parts, "channel": channel, "buffers": []})

    assert message.channel == channel
    assert decoded(message) == [header, parent, metadata, content]
    assert message.header.msg_id == header["msg_id"]
    assert message.header.msg_type == header["msg_type"]
    assert message.header.session == header["session"]


@given(headers, objects, buffers, st.booleans())
def test_a_binary_frame_is_read_with_its_buffers(
    header: Json, content: Json, extra: list[bytes], in_order: bool
) -> None:
    fields = {"header": header, "content": content, "channel": "shell"}
    envelope = dump(fields if in_order else dict(reversed(fields.items())))

    message = legacy.decode_binary(join_legacy(envelope, extra), "mine")

    assert [load(part) for part in message.parts[:4]] == [header, {}, {}, content]
    assert [bytes(part) for part in message.parts[4:]] == extra


def test_parts_keep_the_bytes_that_the_client_wrote() -> None:
    header = json.dumps(HEADER, indent=1)
    text = f'{{"header": {header}, "content": {{"x": 1.50, "x": 1e2}}, "channel":"control"}}'

    message = legacy.decode_text(text, "mine")

    assert message.parts == [header.encode(), b"{}", b"{}", b'{"x": 1.50, "x": 1e2}']


def test_the_layout_of_the_contract_is_read() -> None:
    envelope = dump({"header": HEADER, "channel": "shell", "content": {}})
    envelope += b" " * (567 - len(envelope))
    frame = struct.pack(">4I", 3, 16, 583, 586) + envelope + b"abcdefg"

    message = legacy.decode_binary(frame, "mine")

    assert [bytes(part) for part in message.parts[4:]] == [b"abc", b"defg"]


def test_a_client_may_leave_out_all_but_the_type() -> None:
    message = read(MINIMAL)

    assert message.channel == "shell"
    assert decoded(message)[1:] == [{}, {}, {}]


@pytest.mark.parametrize("name", ["parent_header", "metadata", "content", "buffers", "channel"])
def test_null_is_as_good_as_left_out(name: str) -> None:
    message = read({**MINIMAL, name: None})

    assert message.channel == "shell"
    assert decoded(message)[1:] == [{}, {}, {}]


@pytest.mark.parametrize("nothing", ["[]", "{}", "null", "[ ]", "{\n}"])
def test_no_buffers_may_be_written_in_many_ways(nothing: str) -> None:
    text = f'{{"header": {{"msg_type": "t"}}, "buffers": {nothing}}}'

    assert len(legacy.decode_text(text, "mine").parts) == 4


@pytest.mark.parametrize(
    "something", ['["aGk="]', '{"0": ""}', '"aGk="', "[[]]", "1", "1e999", "[1e999]", "9" * 5000]
)
def test_buffers_in_a_text_frame_are_refused(something: str) -> None:
    text = f'{{"header": {{"msg_type": "t"}}, "buffers": {something}}}'

    with pytest.raises(FrameError, match="binary frame"):
        legacy.decode_text(text, "mine")


@pytest.mark.parametrize(
    "content",
    ['{"x": NaN}', '{"x": [Infinity, -Infinity]}', r'{"code": "\ud83d"}', r'{"\udc00": null}'],
)
def test_what_python_takes_for_json_reaches_the_kernel(content: str) -> None:
    text = f'{{"header": {json.dumps(HEADER)}, "content": {content}, "channel": "control"}}'

    message = legacy.decode_text(text, "mine")

    assert message.channel == "control"
    assert message.header.msg_id == HEADER["msg_id"]
    assert repr(load(message.parts[3])) == repr(json.loads(content))


def test_only_small_frames_are_read_a_second_time() -> None:
    text = json.dumps({**MINIMAL, "content": {"x": float("nan"), "y": "y" * 2**20}})

    with pytest.raises(FrameError, match="not a Jupyter message"):
        legacy.decode_text(text, "mine")


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "{", "}", "null", "NaN", "[NaN]", '"NaN"', "[]", "0", "true", "hello", "\x00"),
        *("{}", '{"header"}', '{"header":}', '{"header": {"msg_type": "t"}} x', "\ufeff{}"),
        '{"content": {"x": NaN}}',
        '{"header": {"msg_type": "t"}, "channel": 7}',
        '{"header": {"msg_type": "t"}, "channel": ["shell"], "content": {"x": NaN}}',
        '{"header": {"msg_type": "t"}, "content": {"x": NaN, "y": ' + "9" * 5000 + "}}",
        '{"header": {"msg_type": "t"}, "content": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"header": {"msg_type": "t"}, "content": ' + "[" * 100_000,
        '{"header": {"msg_type": "t"}, "\ud800": {}, "content": NaN}',
    ],
)
def test_a_text_that_is_no_envelope_is_refused(text: str) -> None:
    with pytest.raises(FrameError, match=r"^not a Jupyter message: "):
        legacy.decode_text(text, "mine")


@pytest.mark.parametrize("name", ["parent_header", "metadata", "content"])
@pytest.mark.parametrize("value", ["[]", '"x"', "1", "true", '[{"a": 1}]'])
def test_a_part_that_is_no_object_is_refused(name: str, value: str) -> None:
    text = f'{{"header": {{"msg_type": "t"}}, "{name}": {value}}}'

    with pytest.raises(MalformedMessage, match=f"^{name}: must be an object$"):
        legacy.decode_text(text, "mine")


@pytest.mark.parametrize("name", ["parent_header", "metadata", "content"])
def test_a_part_that_is_not_utf8_is_refused(name: str) -> None:
    envelope = f'{{"header": {{"msg_type": "t"}}, "{name}": {{"x": "?"}}}}'.encode()

    with pytest.raises(MalformedMessage, match=f"^{name}: is not UTF-8$"):
        legacy.decode_binary(join_legacy(envelope.replace(b"?", b"\xff")), "mine")
    with pytest.raises(MalformedMessage, match=f"^{name}: is not UTF-8$"):
        legacy.decode_text(envelope.decode().replace("?", "\ud800"), "mine")


@pytest.mark.parametrize("header", ["null", "[]", '"t"', "{}", '{"msg_type": ""}', "7"])
def test_a_header_that_says_nothing_is_refused(header: str) -> None:
    with pytest.raises(MalformedMessage, match=r"^header: "):
        legacy.decode_text(f'{{"header": {header}}}', "mine")


@pytest.mark.parametrize("length", range(8))
def test_a_binary_frame_without_a_table_is_refused(length: int) -> None:
    with pytest.raises(FrameError, match="number of parts"):
        legacy.decode_binary(b"\x01" * length, "mine")


@pytest.mark.parametrize("count", [0, 2, 3, 2**16, 2**31, 2**32 - 1])
def test_a_table_that_does_not_fit_is_refused(count: int) -> None:
    with pytest.raises(FrameError, match="does not fit"):
        legacy.decode_binary(struct.pack(">2I", count, 8) + b"{}", "mine")


@pytest.mark.parametrize(
    "offsets",
    [(0, 14), (11, 14), (12, 11), (12, 0), (14, 12), (12, 17), (12, 2**32 - 1), (2**31, 2**32 - 1)],
)
def test_offsets_that_do_not_fit_are_refused(offsets: tuple[int, int]) -> None:
    frame = struct.pack(">3I", 2, *offsets) + b"{}ab"

    with pytest.raises(FrameError, match="overlap, run backwards or pass"):
        legacy.decode_binary(frame, "mine")


def test_the_number_of_parts_is_bounded() -> None:
    most = [b""] * (MAX_PARTS - 1)
    envelope = dump(MINIMAL)

    message = legacy.decode_binary(join_legacy(envelope, most), "mine")

    assert len(message.parts) == MAX_PARTS + 3
    with pytest.raises(FrameError, match="at most"):
        legacy.decode_binary(join_legacy(envelope, [*most, b""]), "mine")
