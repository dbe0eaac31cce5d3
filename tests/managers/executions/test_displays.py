"""Which executions show a display: the latest, as many as an update may touch."""

from __future__ import annotations

import pytest

from app.managers.executions import displays
from app.managers.executions.displays import Displays
from app.managers.executions.execution import Execution
from app.managers.log.entries import Position


def execution(name: str) -> Execution:
    return Execution(name, "a session", Position(1, 0))


def test_a_display_is_shown_by_all_that_were_added_and_not_removed() -> None:
    shown, first, second = Displays(), execution("first"), execution("second")
    for one in (first, second):
        one.display_ids.append("x")
        shown.add(one, "x")
    assert shown.of("x") == [first, second]
    assert shown.of("y") == shown.of(None) == []
    shown.remove(first)
    assert shown.of("x") == [second]
    shown.remove(first)  # as one that has gone from it already
    shown.remove(second)
    assert shown.of("x") == []


def test_only_the_latest_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(displays, "MAX_SHOWING", 2)
    shown, several = Displays(), [execution(name) for name in "abc"]
    for one in several:
        shown.add(one, "x")
    assert shown.of("x") == several[1:]
