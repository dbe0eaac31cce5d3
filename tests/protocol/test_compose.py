"""Messages of the server's own making."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol import legacy, v1, wire
from app.protocol.compose import make_message, make_parts
from app.protocol.messages import PROTOCOL_VERSION, ClientMessage, Header, MalformedMessage
from app.protocol.signing import Signer
from tests.protocol.raw import HEADER, Json, channels, dump, headers, objects, split_v1


@given(channels, st.text(min_size=1), objects, headers)
def test_a_message_is_the_same_in_both_framings(
    channel: str, msg_type: str, content: Json, parent: Json
) -> None:
    message = make_message(channel, msg_type, content, session="k", parent=dump(parent))

    name, *parts = split_v1(message.frame)
    header = json.loads(parts[0])
    assert name == channel.encode()
    assert parts[1:3] == [dump(parent), b"{}"]
    assert json.loads(parts[3]) == content
    assert json.loads(legacy.encode(message)) == {
        "header": header,
        "msg_id": header["msg_id"],
        "msg_type": msg_type,
        "parent_header": parent,
        "metadata": {},
        "content": content,
        "channel": channel,
        "buffers": [],
    }


def test_its_header_is_complete_and_in_the_session_that_was_given() -> None:
    message = make_message("iopub", "status", {"execution_state": "idle"}, session="kernel's")

    header = json.loads(bytes(message.part(0)))
    assert set(header) == set(HEADER)
    assert header["session"] == message.header.session == "kernel's"
    assert header["msg_type"] == message.msg_type == "status"
    assert header["msg_id"] == message.header.msg_id
    assert header["version"] == PROTOCOL_VERSION
    assert message.parent == Header()
    assert bytes(message.part(1)) == b"{}"


def test_content_may_be_json_already() -> None:
    message = make_message("shell", "kernel_info_reply", b'{ "status": "ok"}', session="k")

    assert bytes(message.part(3)) == b'{ "status": "ok"}'


def test_the_parent_steers_it() -> None:
    parent = dump({**HEADER, "subshell_id": "sub"})

    message = make_message("iopub", "status", {}, session="k", parent=memoryview(parent))

    assert message.parent == Header("5d1f-1", "execute_request", "5d1f", "sub")


def test_a_parent_that_cannot_be_understood_is_refused() -> None:
    with pytest.raises(MalformedMessage, match=r"^parent_header: "):
        make_message("iopub", "status", {}, session="k", parent=b"[]")


def test_every_message_has_an_id_of_its_own() -> None:
    ids = {make_message("iopub", "status", {}, session="k").header.msg_id for _ in range(100)}

    assert len(ids) == 100


def test_a_request_of_our_own_is_one_that_a_kernel_understands() -> None:
    header, parts = make_parts("shutdown_request", {"restart": True}, "ours")
    signer = Signer(b"key")

    packed = wire.pack(ClientMessage("control", header, parts), signer)
    message = wire.unpack("control", packed, signer)

    assert message.header == header == Header(header.msg_id, "shutdown_request", "ours")
    assert set(json.loads(bytes(message.part(0)))) == set(HEADER)
    assert message.content() == {"restart": True}
    assert message.parent == Header()
    assert v1.decode(message.frame, "x").parts == parts
