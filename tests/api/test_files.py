"""The range of bytes that a request asks for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.files import Span, requested_span
from app.managers.files.errors import RangeNotSatisfiable

SIZES = st.integers(0, 2**40)


@given(header=st.text() | st.from_regex(r"bytes=\d{0,30}-\d{0,30}"), size=SIZES)
def test_whatever_is_asked_for_lies_in_the_file(header: str, size: int) -> None:
    try:
        span = requested_span(header, size)
    except RangeNotSatisfiable:
        return
    assert span is None or 0 <= span.start < span.end <= size


@given(first=SIZES, length=st.integers(1, 2**40), size=SIZES)
def test_first_and_last_byte(first: int, length: int, size: int) -> None:
    header = f"bytes={first}-{first + length - 1}"
    if first >= size:
        with pytest.raises(RangeNotSatisfiable):
            requested_span(header, size)
    else:
        assert requested_span(header, size) == Span(first, min(first + length, size))


@given(length=st.integers(1, 2**40), size=st.integers(1, 2**40))
def test_the_last_bytes(length: int, size: int) -> None:
    assert requested_span(f"bytes=-{length}", size) == Span(max(0, size - length), size)
