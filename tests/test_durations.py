"""Spans of time as people write them."""

from __future__ import annotations

import pytest

from app.durations import InvalidDuration, parse_duration, shown_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1s", 1),
        ("30m", 1800),
        ("12h", 43200),
        ("30d", 2592000),
        ("2w", 1209600),
        ("3650d", 315360000),
    ],
)
def test_a_number_with_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        *("", "30", "d", "-1d", "+1d", "1.5h", "0s", "0d", "3651d", "1y", "1D", " 1d", "1d\n"),
        *("1d1h", "\u0663d", "9999999999d", "nan", "never", "1" * 2**16 + "d"),
    ],
)
def test_anything_else_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(InvalidDuration) as refused:
        parse_duration(text)
    assert len(str(refused.value)) < 100


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (-5, "0s"), (59.9, "59s"), (60, "1m"), (3600, "1h"), (86399, "23h"), (86400, "1d")],
)
def test_it_is_shown_in_its_largest_unit(seconds: float, text: str) -> None:
    assert shown_duration(seconds) == text
