"""What is told of code: the first line that says something."""

from __future__ import annotations

import pytest

from app.managers.kernels.overview import MAX_CODE, first_line


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
