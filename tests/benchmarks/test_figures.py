"""The benchmark's statistics."""

from __future__ import annotations

import pytest

from benchmarks.figures import Results, percentile


@pytest.mark.parametrize(
    ("percent", "expected"), [(0, 1.0), (1, 1.0), (50, 5.0), (51, 6.0), (99, 10.0), (100, 10.0)]
)
def test_a_percentile_is_one_of_the_values(percent: float, expected: float) -> None:
    values = [float(value) for value in (3, 1, 2, 10, 4, 9, 5, 8, 6, 7)]

    assert percentile(values, percent) == expected


def test_of_nothing_there_is_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        percentile([], 50)


def test_the_median_of_all_rounds_is_taken_by_server() -> None:
    results = Results(["a", "b", "c"])
    for value in (1.0, 100.0, 3.0):
        results.add("a", {"rate": value})
    results.add("b", {"rate": 7.0})

    assert results.row("rate") == {"a": 3.0, "b": 7.0, "c": None}
    assert results.row("unknown") == {"a": None, "b": None, "c": None}
