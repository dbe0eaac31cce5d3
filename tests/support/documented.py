"""The blocks of code in docs/clients.md, which the tests run as they stand there."""

from __future__ import annotations

import re

from tests.support.server import REPOSITORY

PAGE = REPOSITORY / "docs" / "clients.md"


def blocks(language: str) -> list[str]:
    """All blocks in a language."""
    text = PAGE.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def block(language: str, start: str) -> str:
    """The one block in a language that begins with this."""
    (found,) = [text for text in blocks(language) if text.startswith(start)]
    return found
