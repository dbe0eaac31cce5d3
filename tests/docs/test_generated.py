"""What is checked in is what the code makes today."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.generated import FILES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_is_up_to_date(path: Path) -> None:
    made = FILES[path]()
    assert path.read_text(encoding="utf-8") == made, "run scripts/generate and look at the changes"
