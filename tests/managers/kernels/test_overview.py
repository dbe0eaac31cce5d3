"""What is told of code, the first line that says something; and of ends elsewhere, each once."""

from __future__ import annotations

from typing import cast

import pytest

from app.managers.kernels import overview as module
from app.managers.kernels.overview import (
    MAX_CODE,
    GoneEvent,
    Overview,
    Sampled,
    Watched,
    first_line,
)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("", ""),
        ("\n\n", ""),
        ("  x = 1  \ny = 2", "x = 1"),
        ("# why\n\nimport os", "import os"),
        ("# nothing\n# but words", "# nothing"),
        ("x" * 1000, "x" * MAX_CODE),
        ("\n" * 20_000 + "late", ""),
    ],
)
def test_the_first_line_that_says_something(code: str, line: str) -> None:
    assert first_line(code) == line


def test_the_ends_that_are_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ENDS", 3)
    overview = Overview(cast(Watched, None), cast(Sampled, None))
    for at in ("1", "2"):
        for _ in range(2):
            overview.ended(GoneEvent("again", at))
    assert [event.at for event in overview._ended] == ["1", "2"]
    for number in range(5):
        overview.ended(GoneEvent(f"{number}", "3"))
    assert [*overview._ends] == ["2", "3", "4"]
    overview.ended(GoneEvent("4", "3"))
    assert len(overview._ended) == 7
    overview.ended(GoneEvent("4", None))  # nobody knows when
    assert len(overview._ended) == 7
