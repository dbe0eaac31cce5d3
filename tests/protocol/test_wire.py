"""Messages of a kernel as they come off ZMQ: signatures, layout, headers, and no messages."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol import legacy, wire
from app.protocol.messages import Buffer, ClientMessage, Header, MalformedMessage, Message
from app.protocol.signing import Signer
from tests.protocol.raw import (
    DELIMITER,
    HEADER,
    buffers,
    channels,
    dump,
    headers,
    json_parts,
    load,
    split_v1,
)

Parts = tuple[bytes, bytes, bytes, bytes]

KEY = Signer(b"a kernel's key")
HEADER_PART = dump(HEADER)
PARTS = [HEADER_PART, dump({**HEADER, "msg_id": "asked"}), b'{"m": 1}', b'{"code": "1"}']


def frames(parts: Sequence[bytes], *extra: bytes, signer: Signer = KEY) -> list[Buffer]:
    return [DELIMITER, signer.sign(parts[:4]), *parts, *extra]


def raw_parts(message: Message) -> list[bytes]:
    return split_v1(message.frame)[1:]


@given(channels, json_parts, buffers, st.lists(st.binary(max_size=8), max_size=3))
def test_a_signed_message_is_read_unchanged(
    channel: str, parts: Parts, extra: list[bytes], identities: list[bytes]
) -> None:
    message = wire.unpack(channel, [*identities, *frames(parts, *extra)], KEY)

    header, parent = json.loads(parts[0]), json.loads(parts[1])
    assert split_v1(message.frame) == [channel.encode(), *parts, *extra]
    assert message.channel == channel
    assert (message.header.msg_id, message.msg_type) == (header["msg_id"], header["msg_type"])
    assert message.parent.msg_id == parent.get("msg_id", "")
    assert message.parent.session == parent.get("session")
    assert message.buffer_count == len(extra)
    assert [bytes(message.part(i)) for i in range(4 + len(extra))] == [*parts, *extra]
    assert message.content() == json.loads(parts[3])


LARGE = b'{"text": "%b"}' % (b"x" * wire.JOINED_BYTES)


@pytest.mark.parametrize("extra", [[], [b"", b"\xff a buffer"]])
def test_large_output_is_passed_on_in_pieces_that_make_its_frame(extra: list[bytes]) -> None:
    parts = [HEADER_PART, PARTS[1], b'{"m": 1}', LARGE]

    message = wire.unpack("iopub", frames(parts, *extra), KEY)

    assert message.rest == (LARGE, *extra)
    assert message.header.msg_id == HEADER["msg_id"]
    assert message.parent.msg_id == "asked"
    assert split_v1(b"".join((message.frame, *message.rest))) == [b"iopub", *parts, *extra]


@pytest.mark.parametrize("channel", ["shell", "control", "stdin"])
def test_of_large_answers_the_frame_is_whole(channel: str) -> None:
    message = wire.unpack(channel, frames([HEADER_PART, PARTS[1], b"{}", LARGE]), KEY)

    assert not message.rest
    assert message.part(3) == LARGE


def test_of_a_large_status_the_frame_is_whole_too() -> None:
    header = dump({**HEADER, "msg_type": "status"})

    message = wire.unpack("iopub", frames([header, PARTS[1], b"{}", LARGE]), KEY)

    assert not message.rest
    assert message.part(3) == LARGE


def test_large_output_with_a_wrong_signature_is_refused() -> None:
    received = frames([HEADER_PART, PARTS[1], b"{}", LARGE])

    with pytest.raises(wire.BadSignature):
        wire.unpack("iopub", [*received[:-1], LARGE.replace(b"x", b"y", 1)], KEY)


def test_large_output_is_repaired_like_any_other() -> None:
    spoilt = LARGE.replace(b"x", b"\xff", 1)

    message = wire.unpack("iopub", frames([HEADER_PART, PARTS[1], b"null", spoilt]), KEY)

    assert not message.rest
    assert message.part(3) == LARGE.replace(b"x", "\ufffd".encode(), 1)
    assert bytes(message.part(2)) == b"{}"


@given(json_parts, buffers)
def test_what_is_packed_is_understood_by_a_kernel(parts: Parts, extra: list[bytes]) -> None:
    packed = wire.pack(ClientMessage("shell", Header(), [*parts, *extra]), KEY)

    assert packed == [b"<IDS|MSG>", KEY.sign(parts), *parts, *extra]
    assert raw_parts(wire.unpack("shell", packed, KEY)) == [*parts, *extra]


def test_frames_may_be_views_of_libzmqs_memory() -> None:
    views = [memoryview(frame) for frame in (b"identity", *frames(PARTS, b"buffer"))]

    message = wire.unpack("iopub", views, KEY)

    assert raw_parts(message) == [*PARTS, b"buffer"]
    assert (message.header.msg_id, message.parent.msg_id) == ("5d1f-1", "asked")


def test_the_topic_of_iopub_and_identities_are_not_part_of_a_message() -> None:
    topic = b"kernel.1.stream.stdout"

    message = wire.unpack("iopub", [topic, b"", DELIMITER[:-1], *frames(PARTS)], KEY)

    assert raw_parts(message) == PARTS


@pytest.mark.parametrize("signature", [b"", b"0" * 64, b"\xff", Signer(b"other").sign(PARTS)])
def test_a_wrong_signature_is_refused(signature: bytes) -> None:
    with pytest.raises(wire.BadSignature):
        wire.unpack("iopub", [DELIMITER, signature, *PARTS], KEY)


@pytest.mark.parametrize("index", range(4))
def test_a_changed_part_is_refused(index: int) -> None:
    changed = frames(PARTS)
    changed[2 + index] = bytes(changed[2 + index])[:-1] + b" }"

    with pytest.raises(wire.BadSignature):
        wire.unpack("iopub", changed, KEY)


@pytest.mark.parametrize("signature", [b"", b"anything"])
def test_without_a_key_every_signature_is_taken(signature: bytes) -> None:
    message = wire.unpack("iopub", [DELIMITER, signature, *PARTS], Signer(b""))

    assert raw_parts(message) == PARTS


@pytest.mark.parametrize(
    ("received", "why"),
    [
        ([], "delimiter"),
        ([b""], "delimiter"),
        ([b"identity", b"", *PARTS], "delimiter"),
        ([DELIMITER], "0 frames after the delimiter, not 5"),
        ([DELIMITER, b"", *PARTS[:3]], "4 frames after the delimiter, not 5"),
        ([*PARTS, b"", DELIMITER], "0 frames after the delimiter, not 5"),
        ([b"identity", *frames(PARTS)[:-1]], "4 frames after the delimiter, not 5"),
    ],
)
def test_too_few_frames_are_no_message(received: list[bytes], why: str) -> None:
    with pytest.raises(MalformedMessage, match=why):
        wire.unpack("iopub", received, KEY)


@pytest.mark.parametrize(
    "header",
    [
        *(b"", b"null", b"{}", b"[]", b"7", b"{", b"not json", b'{"msg_type":""}', b'"msg_type"'),
        *(b'{"msg_type":null}', b'{"msg_type":7}', b'{"msg_type":"t","msg_id":[]}'),
        *(b'{"msg_type":"t","session":1}', b'{"msg_type":"t","x":NaN}', b"\xff\xfe"),
        b'{"msg_type":"t","x":' + b"[" * 50_000 + b"]" * 50_000 + b"}",
    ],
)
def test_a_header_that_cannot_be_understood_is_refused(header: bytes) -> None:
    with pytest.raises(MalformedMessage, match=r"^header: "):
        wire.unpack("iopub", frames([header, b"{}", b"{}", b"{}"]), KEY)


@pytest.mark.parametrize(
    "parent", [b"", b"[]", b"7", b"{", b'{"msg_id":7}', b'{"session":[]}', b'{"msg_type":{}}']
)
def test_a_parent_header_that_cannot_be_understood_is_refused(parent: bytes) -> None:
    with pytest.raises(MalformedMessage, match=r"^parent_header: "):
        wire.unpack("iopub", frames([HEADER_PART, parent, b"{}", b"{}"]), KEY)


@pytest.mark.parametrize(
    "parent", [b"{}", b"null", b" {}", b'{"msg_id":null,"msg_type":null,"session":null}']
)
def test_a_message_may_be_nobodys_answer(parent: bytes) -> None:
    message = wire.unpack("iopub", frames([HEADER_PART, parent, b"{}", b"{}"]), KEY)

    assert message.parent == Header()


@given(st.lists(st.binary(max_size=40) | st.just(DELIMITER), max_size=9))
def test_arbitrary_frames_are_malformed(received: list[bytes]) -> None:
    with pytest.raises(MalformedMessage):
        wire.unpack("iopub", received, KEY)


fragments = st.binary(max_size=20) | st.sampled_from(
    [b"{}", b"null", b"[]", b'{"msg_type":"status"}', b'{"msg_type":"t"}', b"NaN", b"{" * 3000]
)


@given(
    channels,
    st.lists(headers.map(dump) | fragments, min_size=2, max_size=2),
    st.lists(fragments, min_size=2, max_size=4),
)
def test_whatever_a_kernel_says_clients_get_json(
    channel: str, heads: list[bytes], rest: list[bytes]
) -> None:
    try:
        message = wire.unpack(channel, [DELIMITER, b"", *heads, *rest], Signer(b""))
    except MalformedMessage:
        return
    for index in range(4):
        load(message.part(index))
    assert isinstance(message.content(), dict)
    if not message.buffer_count:
        envelope = json.loads(legacy.encode(message).decode())
        assert envelope["channel"] == channel


@pytest.mark.parametrize("channel", ["iopub", "shell"])
@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_a_message_read_together_with_one_cut_short_is_found(channel: str, cut: int) -> None:
    topic = [b"topic"] if channel == "iopub" else []
    short = [*topic, *frames(PARTS)[:cut]]
    whole = [*topic, *frames(PARTS, b"buffer")]

    *others, last = wire.split(channel, [*short, *whole])

    assert last[-len(whole) :] == whole
    assert len(others) == (1 if cut else 0)


def test_messages_without_a_topic_are_told_apart() -> None:
    assert wire.split("iopub", [*frames(PARTS), *frames(PARTS)]) == [frames(PARTS)] * 2


def test_a_long_parent_header_is_understood_too() -> None:
    parent = dump({**HEADER, "msg_id": "asked", "more": "x" * 5000})

    message = wire.unpack("iopub", frames([HEADER_PART, parent, b"{}", b"{}"]), KEY)

    assert message.parent.msg_id == "asked"
