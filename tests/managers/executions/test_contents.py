"""The content of messages that is no strict JSON, or no JSON at all."""

from __future__ import annotations

import json
from typing import Any

import pytest

from app.managers.executions.contents import content_of, count_of, raw_json, text_of
from tests.support.messages import said_raw

LENIENT: dict[bytes, Any] = {
    b'{"a": [1, "\xc3\xa4"]}': {"a": [1, "\u00e4"]},
    b'{"a": NaN, "b": -Infinity}': {"a": None, "b": None},
    b'{"a": "\\ud800"}': {"a": "\ufffd"},
    b'{"\\ud800": 1}': {"\ufffd": 1},
    b'{"a": "\\ud83d\\ude00"}': {"a": "\U0001f600"},
}


@pytest.mark.parametrize(("sent", "content"), LENIENT.items())
def test_what_python_kernels_send_becomes_strict_json(sent: bytes, content: Any) -> None:
    assert content_of(said_raw("stream", sent)) == content
    strict = bytes(raw_json(sent))
    assert json.loads(strict, parse_constant=pytest.fail) == content
    strict.decode().encode("utf-8")


def test_a_number_that_no_float_can_hold_is_null() -> None:
    assert content_of(said_raw("stream", b'{"a": [1e999, -1e999]}')) == {"a": [None, None]}


@pytest.mark.parametrize("sent", [b"", b"{", b"\xff", b"[" * 100_000, b"{" * 2 + b"}"])
def test_what_is_no_json_is_empty(sent: bytes) -> None:
    assert content_of(said_raw("stream", sent)) == {}
    assert bytes(raw_json(sent)) == b"{}"


@pytest.mark.parametrize("sent", [b"[1]", b"1", b'"a"', b"null"])
def test_content_is_an_object(sent: bytes) -> None:
    assert content_of(said_raw("stream", sent)) == {}
    assert bytes(raw_json(sent)) == sent


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a\n", "a\n"),
        (["a\n", "b"], "a\nb"),
        ([], ""),
        (["a", 1], ""),
        (None, ""),
        (5, ""),
        ({"a": "b"}, ""),
    ],
)
def test_a_text_may_come_as_lines(value: Any, text: str) -> None:
    assert text_of(value) == text


@pytest.mark.parametrize("value", [0, 7, -1, 2**63 - 1, -(2**63)])
def test_a_count_is_a_number(value: int) -> None:
    assert count_of(value) == value


@pytest.mark.parametrize("value", [2**63, -(2**63) - 1, 10**30, 1.5, "1", None, [1]])
def test_what_cannot_be_stored_is_no_count(value: Any) -> None:
    assert count_of(value) is None
