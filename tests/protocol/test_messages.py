"""Headers: what steers a message, what is filled in for clients, and how time is written."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol import messages
from app.protocol.compose import make_message
from app.protocol.messages import (
    Header,
    MalformedMessage,
    Message,
    checked_object,
    complete_header,
    decode_header,
    decode_parent,
    format_timestamp,
    new_header,
    reply_type,
)
from tests.protocol.raw import HEADER, Json, dump, headers, join_v1, load

WRITTEN_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def without(*names: str) -> Json:
    return {name: value for name, value in HEADER.items() if name not in names}


@pytest.mark.parametrize("part", [b"{}", b"null", b" {} ", memoryview(b"{}")])
def test_a_message_that_nobody_asked_for_has_an_empty_parent(part: bytes) -> None:
    assert decode_header(part, "parent_header") == Header("", "", None, None)


def test_the_steering_fields_are_read_and_others_ignored() -> None:
    part = dump({**HEADER, "subshell_id": "sub", "deep": {"x": [1, None]}})

    assert decode_header(part) == Header("5d1f-1", "execute_request", "5d1f", "sub")
    assert decode_header(memoryview(part)) == decode_header(part)


def test_a_field_that_is_null_counts_as_left_out() -> None:
    nothing = dict.fromkeys(("msg_id", "msg_type", "session", "subshell_id", "date"))

    assert decode_header(dump(nothing)) == Header()
    assert decode_header(dump({**nothing, "msg_type": "status"})) == Header(msg_type="status")


@pytest.mark.parametrize(
    "part",
    [
        *(b"", b" ", b"[]", b"1", b'"x"', b"{", b"{}{}", b"\xff", b"\xef\xbb\xbf{}", b"{'a':1}"),
        *(b'{"msg_id":1}', b'{"msg_type":[]}', b'{"session":{}}', b'{"subshell_id":false}'),
        *(b'{"msg_id":null,"msg_type":1}', b'{"msg_id":"\xff"}', b'{"msg_id":"\\ud800"}'),
        b'{"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_a_header_that_cannot_be_understood_is_named(part: bytes) -> None:
    with pytest.raises(MalformedMessage, match=r"^parent_header: "):
        decode_header(part, "parent_header")


@given(headers)
def test_a_complete_header_is_passed_on_byte_for_byte(header: Json) -> None:
    part = dump(header)

    same, steering = complete_header(part, "mine")

    assert same is part
    assert (steering.msg_id, steering.msg_type) == (header["msg_id"], header["msg_type"])
    assert steering.session == header["session"]


@pytest.mark.parametrize("name", ["msg_id", "session", "username", "date", "version"])
@pytest.mark.parametrize("empty", ["", None, "left out"])
def test_what_a_client_leaves_out_is_filled_in(name: str, empty: str | None) -> None:
    header = without(name) if empty == "left out" else {**HEADER, name: empty}

    part, steering = complete_header(dump({**header, "own": [1.5]}), "mine")

    completed = load(part)
    assert isinstance(completed.pop(name), str)
    assert completed == {**without(name), "own": [1.5]}
    assert steering.msg_id == load(part)["msg_id"] != ""
    assert steering.session == ("mine" if name == "session" else HEADER["session"])
    if name == "date":
        assert WRITTEN_TIME.fullmatch(load(part)["date"])


@pytest.mark.parametrize(
    ("name", "value"), [("date", 1795000000.25), ("version", 5.3), ("username", {"name": "ada"})]
)
def test_what_should_be_text_is_written_as_text(name: str, value: object) -> None:
    # jupyter_server's GatewayKernelClient dates its messages with a Unix number.
    part, _ = complete_header(dump({**HEADER, name: value}), "mine")

    completed = load(part)
    assert isinstance(completed.pop(name), str)
    assert completed == without(name)


def test_every_completed_header_gets_an_id_of_its_own() -> None:
    part = dump({"msg_type": "execute_request"})

    ids = {complete_header(part, "mine")[1].msg_id for _ in range(100)}

    assert len(ids) == 100


def test_a_subshell_is_kept() -> None:
    part, steering = complete_header(dump({"msg_type": "t", "subshell_id": "sub"}), "mine")

    assert steering.subshell_id == "sub"
    assert load(part)["subshell_id"] == "sub"


@pytest.mark.parametrize(
    "part",
    [
        *(b"", b"null", b"[]", b"1", b"{}", b"{", b'{"msg_type":""}', b'{"msg_type":null}'),
        *(b'{"msg_type":1}', b'{"msg_type":"t","msg_id":1}', b'{"msg_type":"t","session":[]}'),
        *(b'{"msg_type":"t","x":NaN}', b'{"msg_type":"t","x":1e999}', b'{"msg_type":"\\ud800"}'),
        b'{"msg_type":"t","x":' + b"[" * 20_000 + b"]" * 20_000 + b"}",
    ],
)
def test_a_clients_header_that_cannot_be_understood_is_refused(part: bytes) -> None:
    with pytest.raises(MalformedMessage, match=r"^header: "):
        complete_header(part, "mine")


@pytest.mark.parametrize("msg_id", ["a\0b", "x" * 1025, "ä" * 513])
def test_an_id_that_cannot_be_stored_is_refused(msg_id: str) -> None:
    with pytest.raises(MalformedMessage, match=r"^header: msg_id has a NUL, or more"):
        complete_header(dump({**HEADER, "msg_id": msg_id}), "mine")


@pytest.mark.parametrize("msg_id", ["x" * 1024, "ä" * 512])
def test_any_other_id_is_the_clients(msg_id: str) -> None:
    part = dump({**HEADER, "msg_id": msg_id})
    assert complete_header(part, "mine")[0] == part


@pytest.mark.parametrize("name", ["msg_id", "username", "own"])
def test_a_header_is_utf8_throughout_for_it_comes_back_to_every_client(name: str) -> None:
    part = dump({**HEADER, name: "?"}).replace(b"?", b"\xff")

    with pytest.raises(MalformedMessage, match="utf-8"):
        complete_header(part, "mine")


def test_a_header_is_bounded_and_so_is_what_it_takes_to_read_it() -> None:
    filler = b"[]," * 2**20
    part = b'{"msg_type":"t","x":[' + filler + b"[]]}"

    tracemalloc.start()
    try:
        with pytest.raises(MalformedMessage, match=f"larger than {messages.MAX_HEADER_BYTES} "):
            complete_header(part, "mine")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < len(part)


def test_a_new_header_is_complete_and_dated_in_utc() -> None:
    before = datetime.now(UTC)
    header = new_header("status", "mine")
    after = datetime.now(UTC)

    assert set(header) == set(HEADER)
    assert all(header.values())
    assert header["msg_type"] == "status"
    assert header["session"] == "mine"
    assert WRITTEN_TIME.fullmatch(header["date"])
    assert before <= datetime.fromisoformat(header["date"]) <= after
    assert new_header("status", "mine", "given")["msg_id"] == "given"


@given(st.floats(min_value=0, max_value=4e9))
def test_times_always_have_six_digits_and_a_z(seconds: float) -> None:
    text = format_timestamp(seconds)

    assert WRITTEN_TIME.fullmatch(text)
    # As jupyter_server's gateway client reads it.
    read = datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    assert abs(read.timestamp() - seconds) < 1e-5


def test_a_whole_second_has_its_digits_too() -> None:
    assert format_timestamp(0) == "1970-01-01T00:00:00.000000Z"
    assert format_timestamp(1795358988.797413) == "2026-11-22T14:49:48.797413Z"


@pytest.mark.parametrize(
    ("request_type", "expected"),
    [
        ("execute_request", "execute_reply"),
        ("kernel_info_request", "kernel_info_reply"),
        ("comm_msg", None),
        ("comm_open", None),
        ("input_reply", None),
        ("_request", "_reply"),
        ("", None),
    ],
)
def test_requests_have_replies_and_comms_do_not(request_type: str, expected: str | None) -> None:
    assert reply_type(request_type) == expected


def test_a_message_shows_its_parts_and_content() -> None:
    message = make_message("iopub", "stream", {"text": "x"}, session="s", parent=dump(HEADER))

    assert message.msg_type == "stream"
    assert message.buffer_count == 0
    assert load(message.part(0))["msg_id"] == message.header.msg_id
    assert bytes(message.part(1)) == dump(HEADER)
    assert bytes(message.part(2)) == b"{}"
    assert message.content() == {"text": "x"}
    assert repr(message) == f"<Message iopub stream {message.header.msg_id}>"


def test_a_parent_is_decoded_once_however_often_it_comes() -> None:
    part = dump(HEADER)

    assert decode_parent(part) is decode_parent(bytes(bytearray(part)))
    assert decode_parent(memoryview(part)) == decode_parent(part)
    large = dump({**HEADER, "own": "x" * messages.MAX_SHARED_BYTES})
    assert decode_parent(large) == decode_parent(part)
    assert decode_parent(large) is not decode_parent(large)


def test_a_message_read_from_its_frame_has_the_headers_that_were_written() -> None:
    made = make_message("iopub", "stream", {}, session="s", parent=dump(HEADER))
    read = Message("iopub", made.frame)

    assert read.header == made.header
    assert read.header is read.header
    assert read.parent == decode_header(dump(HEADER))
    assert read.parent is read.parent


@pytest.mark.parametrize("known", [True, False])
def test_only_a_stream_tells_its_parent_part(known: bool) -> None:
    stream = make_message("iopub", "stream", {}, session="s", parent=dump(HEADER))
    status = make_message("iopub", "status", {}, session="s", parent=dump(HEADER))
    if not known:
        stream, status = Message("iopub", stream.frame), Message("iopub", status.frame)

    assert stream.stream_parent() == dump(HEADER)
    assert status.stream_parent() == b""


@pytest.mark.parametrize("buffers", [0, 1, 3])
def test_the_parts_lie_between_the_bounds(buffers: int) -> None:
    parts = [dump(HEADER), b"{}", b"{}", b"{}", *[b"buffer"] * buffers]
    message = Message("shell", join_v1(b"shell", parts))

    found = [message.frame[a:b] for a, b in itertools.pairwise(message.bounds)]

    assert found == [b"shell", *parts]
    assert message.buffer_count == buffers
    assert message.stream_parent() == b""


@pytest.mark.parametrize("frame", [b"", bytes(39)])
def test_a_frame_that_is_too_short_is_no_stream(frame: bytes) -> None:
    assert Message("iopub", frame).stream_parent() == b""


@pytest.mark.parametrize("content", [b"{", b"\xff", b'{"x":"\xff"}', b"NaN", b"[" * 100_000])
def test_content_that_is_no_json_is_named(content: bytes) -> None:
    message = make_message("iopub", "stream", content, session="s")

    with pytest.raises(MalformedMessage, match=r"^content: "):
        message.content()


@pytest.mark.parametrize(
    "part",
    [
        *(b" {} ", b'{"a":[1,{"b":null}]}', b'{"a":1e999}', '{"ä":"€"}'.encode()),
        *(b'{"a":NaN}', b'{"a":-Infinity}', b'{"a":"\\ud800"}', memoryview(b'{"a":1}')),
    ],
)
def test_an_object_is_sent_on_as_it_is(part: bytes) -> None:
    assert checked_object("content", part) is part


@pytest.mark.parametrize("part", [b"{}", b"null", memoryview(b"null")])
def test_nothing_is_an_empty_object(part: bytes) -> None:
    assert checked_object("metadata", part) == b"{}"


@pytest.mark.parametrize(
    "part",
    [
        *(b"", b"[]", b"1", b'"x"', b"{", b"{}{}", b"{'a':1}", b'{"a":1,}', b'{"a":"\n"}'),
        *(b"\xff", b'{"a":"\xff"}', b'{"a":"\\x"}', b"[NaN]", b'{"a":' * 100_000),
    ],
)
def test_what_is_no_object_is_refused(part: bytes) -> None:
    with pytest.raises(MalformedMessage, match=r"^content: "):
        checked_object("content", part)


def test_only_small_parts_are_parsed_leniently() -> None:
    large = b'{"a":NaN,"b":"%s"}' % (b"x" * messages.LENIENT_BYTES)

    with pytest.raises(MalformedMessage, match=r"^content: "):
        checked_object("content", large)
