"""Hiding tracebacks, message by message, without a kernel."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.managers.messages.tracebacks import hide_traceback
from app.protocol import v1
from app.protocol.compose import make_message
from app.protocol.messages import Message, decode_header
from tests.support.framing import decode_legacy, decode_v1

SECRET = "very_secret_module"
REPLACEMENT = "Not shown here."
ERROR = {
    "ename": f"{SECRET}Error",
    "evalue": f"{SECRET} said no",
    "traceback": [f"File /srv/{SECRET}.py:7, in f()", f"----> 7 raise {SECRET}Error"],
}
HIDDEN = {"ename": "ExecutionError", "evalue": "Execution error", "traceback": [REPLACEMENT]}
PARENT = b'{"msg_id": "the request", "session": "s", "msg_type": "execute_request"}'


def message(channel: str, msg_type: str, content: dict[str, Any] | bytes) -> Message:
    return make_message(channel, msg_type, content, session="kernel", parent=PARENT)


def hidden(channel: str, msg_type: str, content: dict[str, Any] | bytes) -> dict[str, Any]:
    """The content that clients see, the same in both framings, with no trace of the secret."""
    shown = hide_traceback(message(channel, msg_type, content), REPLACEMENT)
    assert SECRET.encode() not in shown.frame
    from app.protocol import legacy

    as_v1, as_legacy = decode_v1(shown.frame), decode_legacy(legacy.encode(shown).decode())
    assert as_v1 == as_legacy
    assert as_v1.channel == channel
    assert as_v1.msg_type == msg_type
    assert as_v1.parent_header == json.loads(PARENT)
    return as_v1.content


def test_an_error_on_iopub_keeps_its_form_and_nothing_else() -> None:
    assert hidden("iopub", "error", ERROR) == HIDDEN


def test_what_a_kernel_adds_to_an_error_is_hidden_too() -> None:
    more = {"engine_info": {"method": SECRET}, "frames": [{"file": SECRET}]}
    assert hidden("iopub", "error", ERROR | more) == HIDDEN


@pytest.mark.parametrize(
    ("channel", "msg_type"),
    [
        ("shell", "execute_reply"),
        ("shell", "complete_reply"),
        ("shell", "inspect_reply"),
        ("shell", "history_reply"),
        ("control", "execute_reply"),
        ("control", "interrupt_reply"),
        ("shell", "some_future_reply"),
    ],
)
def test_every_reply_that_reports_an_error(channel: str, msg_type: str) -> None:
    assert hidden(channel, msg_type, {"status": "error", **ERROR}) == {"status": "error", **HIDDEN}


def test_an_execute_reply_keeps_what_a_front_end_needs_of_it() -> None:
    content = {
        "status": "error",
        **ERROR,
        "execution_count": 7,
        "payload": [],
        "user_expressions": {},
        "engine_info": {"engine_uuid": "u", "method": SECRET},
    }
    assert hidden("shell", "execute_reply", content) == {
        "status": "error",
        **HIDDEN,
        "execution_count": 7,
        "payload": [],
        "user_expressions": {},
    }


def test_user_expressions_that_failed_and_only_those() -> None:
    good = {"status": "ok", "data": {"text/plain": "2"}, "metadata": {}}
    expressions = {"good": good, "bad": {"status": "error", **ERROR}, "odd": None, "list": []}
    content = {"status": "ok", "execution_count": 1, "user_expressions": expressions}
    assert hidden("shell", "execute_reply", content) == {
        "status": "ok",
        "execution_count": 1,
        "user_expressions": {
            "good": good,
            "bad": {"status": "error", **HIDDEN},
            "odd": None,
            "list": [],
        },
    }


@pytest.mark.parametrize(
    ("channel", "msg_type", "content"),
    [
        ("shell", "execute_reply", {"status": "ok", "execution_count": 1, "user_expressions": {}}),
        ("shell", "execute_reply", {"status": "aborted"}),
        ("shell", "kernel_info_reply", {"status": "ok", "traceback": ["no error, no matter"]}),
        ("shell", "execute_reply", {"status": "ok", "user_expressions": None}),
        ("iopub", "stream", {"name": "stderr", "text": "Traceback (most recent call last):"}),
        ("iopub", "display_data", {"data": {"text/plain": "error"}, "metadata": {}}),
        ("iopub", "status", {"execution_state": "idle"}),
        ("iopub", "execute_result", {"data": {}, "status": "error"}),
        ("stdin", "input_request", {"prompt": "?", "password": False}),
        ("control", "debug_reply", {"success": False, "message": "no"}),
    ],
)
def test_what_tells_of_no_error_is_passed_on_as_it_is(
    channel: str, msg_type: str, content: dict[str, Any]
) -> None:
    original = message(channel, msg_type, content)
    assert hide_traceback(original, REPLACEMENT) is original


@given(st.lists(st.binary(max_size=300), max_size=5))
def test_everything_but_the_content_is_untouched(buffers: list[bytes]) -> None:
    header = b'{"msg_id": "m", "msg_type": "execute_reply", "session": "k", "odd": [1.50]}'
    metadata = b'{ "status":"error" , "x" : 1e400 }'
    content = json.dumps({"status": "error", **ERROR}).encode()
    parts = [header, PARENT, metadata, content, *buffers]
    frame, _ = v1.encode("shell", parts)
    original = Message("shell", frame, decode_header(header), decode_header(PARENT))
    shown = hide_traceback(original, REPLACEMENT)
    assert shown.buffer_count == len(buffers)
    assert [bytes(shown.part(i)) for i in range(3)] == parts[:3]
    assert [bytes(shown.part(4 + i)) for i in range(len(buffers))] == buffers
    assert (shown.header, shown.parent) == (original.header, original.parent)
    assert bytes(original.part(3)) == content


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", '"\\ud800"'], ids=["nan", "inf", "-inf", "surrogate"]
)
def test_json_as_python_kernels_write_it_is_understood(number: str) -> None:
    """A reply that were dropped for it would be waited for without end."""
    good = f'{{"status": "ok", "data": {{"application/json": {number}}}, "metadata": {{}}}}'
    bad = json.dumps({"status": "error", **ERROR})
    expressions = f'{{"good": {good}, "bad": {bad}}}'
    content = f'{{"status": "ok", "execution_count": 1, "user_expressions": {expressions}}}'
    shown = hidden("shell", "execute_reply", content.encode())
    assert shown["user_expressions"]["bad"] == {"status": "error", **HIDDEN}
    assert str(shown["user_expressions"]["good"]) == str(json.loads(good))


@pytest.mark.parametrize(
    "content",
    [b'{"status": "error", "evalue": "very_secret_module', b'["very_secret_module"]', b"null"],
    ids=["cut off", "a list", "null"],
)
@pytest.mark.parametrize(("channel", "msg_type"), [("iopub", "error"), ("shell", "execute_reply")])
def test_content_that_cannot_be_looked_into_is_shown_to_nobody(
    channel: str, msg_type: str, content: bytes
) -> None:
    shown = hidden(channel, msg_type, content)
    assert {name: shown[name] for name in HIDDEN} == HIDDEN
    assert channel == "iopub" or shown["status"] == "error"


@pytest.mark.parametrize("depth", [100, 900, 10_000])
def test_content_of_any_depth_does_no_harm(depth: int) -> None:
    deep = f'"payload": {"[" * depth}{"]" * depth}'
    content = f'{{"status": "error", "evalue": "{SECRET}", {deep}}}'
    shown = hide_traceback(message("shell", "execute_reply", content.encode()), REPLACEMENT)
    assert SECRET.encode() not in shown.frame
    assert REPLACEMENT.encode() in shown.frame
