"""By which figures the benchmark of the page fails."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks.page import Taken, figures_of, told

GOOD = Taken(
    cpu=2.4, seconds=20, memory=[143 * 10**6] * 20, clicks=[0.003] * 20, clicked=20, longest=0.16
)


def failing(taken: Taken) -> list[str]:
    return [one.name for one in figures_of(taken) if one.fails]


def test_what_was_measured_passes(capsys: pytest.CaptureFixture[str]) -> None:
    # The longest task is told, and does not fail: another program may have had the processor.
    assert told(GOOD) == 0
    assert "longest task, s           0.160   at most 0.1\n" in capsys.readouterr().out


def test_each_figure_fails_that_is_held(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(replace(GOOD, cpu=12.1)) == ["processors"]
    assert failing(replace(GOOD, memory=[1, 301 * 10**6])) == ["memory at most, MB"]
    assert failing(replace(GOOD, clicks=[0.003] * 19)) == ["clicks not answered"]
    assert failing(replace(GOOD, clicks=[0.11] * 20)) == ["a click, median, s"]
    assert failing(replace(GOOD, clicks=[0.003] * 19 + [2.1])) == ["a click, longest, s"]
    assert failing(replace(GOOD, has_ended=False)) == ["end not shown"]
    assert told(replace(GOOD, clicks=[])) == 1
    assert "MISSED" in capsys.readouterr().out


def test_one_click_that_had_to_wait_does_not_fail() -> None:
    assert failing(replace(GOOD, clicks=[0.003] * 18 + [0.5, 0.5])) == []
