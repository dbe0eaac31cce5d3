"""What of a request's body is refused before it is parsed."""

from __future__ import annotations

import json

import pytest

from app.api.bodies import MAX_CONTAINERS, MAX_DEPTH, check_nesting, parse
from app.managers.errors import InvalidJSON


@pytest.mark.parametrize(
    "value", [{}, {"a": [1, "[{" * 100, '"[' * 100, "\\"]}, [[]] * 1000, [[[]] * 100] * 100]
)
def test_what_is_within_the_bounds_is_parsed(value: object) -> None:
    assert parse(json.dumps(value).encode()) == value


def test_the_deepest_that_is_taken() -> None:
    deepest = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse(deepest)
    with pytest.raises(InvalidJSON, match="nested deeper than 64"):
        parse(b"[%b]" % deepest)


def test_the_most_that_is_taken() -> None:
    most = b"[%b]" % b",".join([b"{}"] * (MAX_CONTAINERS - 1))
    assert len(parse(most)) == MAX_CONTAINERS - 1
    with pytest.raises(InvalidJSON, match="more than 50000"):
        parse(b"[%b,%b]" % (most, most))


@pytest.mark.parametrize("body", [b"", b"{", b"[1,]", b"\xff", b"]" * 100 + b"[" * 10])
def test_what_is_no_json_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidJSON, match="Invalid JSON"):
        parse(body)


def test_only_brackets_outside_of_texts_count() -> None:
    check_nesting(b'"' + b"[" * (MAX_CONTAINERS + 1) + b'"')
    with pytest.raises(InvalidJSON):
        check_nesting(b'"\\\\"' + b"[" * (MAX_DEPTH + 1))
    check_nesting(b'"\\"' + b"[" * (MAX_DEPTH + 1))
