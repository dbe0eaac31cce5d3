"""The blocks of code in docs/, which the tests run as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.server import REPOSITORY

PAGE = REPOSITORY / "docs" / "clients.md"


def blocks(language: str, page: Path = PAGE) -> list[str]:
    """All blocks in a language, of docs/clients.md or of another page."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def block(language: str, start: str, page: Path = PAGE) -> str:
    """The one block in a language that begins with this."""
    (found,) = [text for text in blocks(language, page) if text.startswith(start)]
    return found
