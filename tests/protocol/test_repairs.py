"""What a kernel says that is not UTF-8 or not JSON: repaired, replaced, or passed on as it is."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol import legacy, wire
from app.protocol.messages import MalformedMessage, Message
from app.protocol.signing import Signer
from tests.protocol.raw import DELIMITER, HEADER, dump, split_v1

KEY = Signer(b"key")


def header_of(msg_type: str) -> bytes:
    return dump({**HEADER, "msg_type": msg_type})


PARENT = dump({**HEADER, "msg_id": "asked"})
PARTS = [header_of("stream"), PARENT, b'{"m": 1}', b'{"text": "x"}']


def unpack(channel: str, parts: Sequence[bytes], *extra: bytes) -> Message:
    return wire.unpack(channel, [DELIMITER, KEY.sign(parts), *parts, *extra], KEY)


def with_content(msg_type: str, content: bytes, channel: str = "iopub") -> Message:
    return unpack(channel, [header_of(msg_type), PARENT, b"{}", content])


def spoil(part: bytes, index: int) -> bytes:
    """The part with a byte that no UTF-8 has, inside its first text."""
    spoilt = part.replace(b'": "', b'": "\xff', 1)
    return spoilt if spoilt != part else b'{"bad": "\xff"}'


@pytest.mark.parametrize("index", range(4))
def test_invalid_utf8_in_any_part_is_repaired(index: int) -> None:
    parts = list(PARTS)
    parts[index] = spoil(parts[index], index)

    message = unpack("iopub", parts, b"\xff buffers are nobody's text")

    expected = [part.replace(b"\xff", "\ufffd".encode()) for part in parts]
    assert split_v1(message.frame)[1:] == [*expected, b"\xff buffers are nobody's text"]
    assert json.loads(bytes(message.part(index)))
    assert message.header.msg_id == json.loads(expected[0])["msg_id"]
    assert message.parent.msg_id == json.loads(expected[1])["msg_id"]


@pytest.mark.parametrize("shift", range(4))
def test_a_long_part_is_looked_at_to_its_end(shift: int) -> None:
    # Characters of four bytes, which lie across every place where a piece may end.
    text = b"x" * shift + "\U0001f600".encode() * wire.PIECE_BYTES
    content = b'{"text": "%b"}' % text

    assert with_content("stream", content).rest == (content,)

    spoilt = with_content("stream", content[:-3] + b'"}')  # without the last byte of the last one
    assert bytes(spoilt.part(3)) == content[:-6] + "\ufffd".encode() + b'"}'


@given(st.binary(max_size=40))
def test_text_that_is_cut_anywhere_becomes_json(text: bytes) -> None:
    escaped = text.replace(b"\\", b"/").replace(b'"', b"'")
    printable = bytes(byte for byte in escaped if byte >= 0x20)

    message = with_content("stream", b'{"text":"' + printable + b'"}')

    assert message.content() == {"text": printable.decode("utf-8", "replace")}


def test_invalid_utf8_in_views_of_memory_is_repaired() -> None:
    parts = [header_of("stream"), PARENT, b"{}", b'{"text": "\xff"}']
    views = [memoryview(part) for part in (DELIMITER, KEY.sign(parts), *parts)]

    assert wire.unpack("iopub", views, KEY).content() == {"text": "\ufffd"}


def test_bytes_outside_a_text_cannot_be_repaired() -> None:
    with pytest.raises(MalformedMessage, match=r"^header: "):
        unpack("iopub", [b"\xff" + PARTS[0], *PARTS[1:]])


NO_OBJECT = [
    *(b"", b" ", b"x", b"{", b"}", b"{]", b"[]", b"null", b"NaN", b"7", b'"{}"', b"{}{}", b'{"a"}'),
    *(b'{"a":1,}', b"{'a':1}", b'{"a":"\n"}', b'{"a":"\\q"}', b"{a:1}", b'{"a":01}', b"\x00{}"),
    b'{"a":' + b"[" * 2000 + b"]" * 2000 + b"}",
    b'{"a":' * 500 + b"1" + b"}" * 499,
    b"not json " * 10_000,
    b"[" * 10_000 + b"]" * 10_000,
    b'\xef\xbb\xbf{"a":1}',
    '{"a":1}'.encode("utf-16-le"),
    '{"a":1}'.encode("utf-16-be"),
    '{"a":1}'.encode("utf-32-le"),
]


@pytest.mark.parametrize("content", NO_OBJECT)
@pytest.mark.parametrize("channel", ["shell", "control"])
def test_a_reply_whose_content_is_no_object_becomes_an_error_reply(
    channel: str, content: bytes
) -> None:
    message = with_content("execute_reply", content, channel)

    assert message.channel == channel
    assert message.msg_type == "execute_reply"
    assert message.parent.msg_id == "asked"
    assert bytes(message.part(1)) == PARENT
    assert message.header.session == HEADER["session"]
    reply = message.content()
    assert reply["status"] == "error"
    assert reply["ename"] == "InvalidMessage"
    assert "execute_reply" in reply["evalue"]
    assert reply["traceback"] == []


@pytest.mark.parametrize("content", NO_OBJECT)
@pytest.mark.parametrize("msg_type", ["stream", "display_data", "error", "comm_msg"])
def test_output_that_is_no_object_becomes_a_notice(msg_type: str, content: bytes) -> None:
    message = with_content(msg_type, content)

    assert (message.channel, message.msg_type) == ("iopub", "stream")
    assert message.parent.msg_id == "asked"
    assert message.header.session == HEADER["session"]
    assert message.content()["name"] == "stderr"
    assert msg_type in message.content()["text"]
    assert json.loads(legacy.encode(message))["content"] == message.content()


@pytest.mark.parametrize("content", NO_OBJECT)
@pytest.mark.parametrize(("channel", "msg_type"), [("iopub", "status"), ("stdin", "input_request")])
def test_what_has_no_replacement_is_refused(channel: str, msg_type: str, content: bytes) -> None:
    with pytest.raises(MalformedMessage, match=f"{msg_type}: content is not JSON"):
        with_content(msg_type, content, channel)


def test_a_replacement_needs_no_session() -> None:
    message = unpack("shell", [b'{"msg_type":"execute_reply"}', b"{}", b"{}", b"no"])

    assert message.content()["status"] == "error"
    assert message.header.session == ""


@pytest.mark.parametrize(
    "content",
    [
        *(b"{}", b'{"x": NaN}', b'{"x": [Infinity, -Infinity]}', rb'{"x": "\ud83d"}'),
        *(b' {"x": 1}', b'{"x": 1}\r\n', b"\t{\n}\n", b'{"x": 1e999}', b'{"x": "\x7f"}'),
        b'{"a":' + b"[" * 200 + b"]" * 200 + b"}",
        b'{"x": 123456789012345678901234567890}',
        b'{"x": NaN, "y": "' + b"y" * wire.FULL_CHECK_BYTES + b'"}',
        b' {"y": "' + b"y" * wire.FULL_CHECK_BYTES + b'"}',
    ],
)
def test_what_every_jupyter_server_takes_is_passed_on(content: bytes) -> None:
    message = with_content("display_data", content)

    assert message.msg_type == "display_data"
    assert bytes(message.part(3)) == content


def test_large_content_is_looked_at_only_at_its_ends() -> None:
    filler = b"y" * wire.FULL_CHECK_BYTES

    assert with_content("stream", b'{"x": ' + filler + b"}").msg_type == "stream"
    notice = with_content("display_data", filler)
    assert (notice.msg_type, notice.content()["name"]) == ("stream", "stderr")


@pytest.mark.parametrize("metadata", NO_OBJECT)
def test_metadata_that_is_no_object_is_left_out(metadata: bytes) -> None:
    message = unpack("iopub", [PARTS[0], PARENT, metadata, PARTS[3]], b"buffer")

    assert split_v1(message.frame)[1:] == [PARTS[0], PARENT, b"{}", PARTS[3], b"buffer"]
    assert message.header.msg_id == HEADER["msg_id"]
