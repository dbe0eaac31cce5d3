"""What axe finds in a page: rules of WCAG 2.2, levels A and AA."""

from __future__ import annotations

from functools import cache
from typing import Any

from playwright.async_api import Page

from tests.support.node_packages import install
from tests.support.page import SOURCES

__all__ = ["assert_accessible"]

_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


@cache
def _axe() -> str:
    return (install(SOURCES) / "node_modules" / "axe-core" / "axe.min.js").read_text()


async def assert_accessible(page: Page) -> None:
    """Raises `AssertionError` with what axe finds in the page as it stands, frames included."""
    for frame in page.frames:
        await frame.evaluate(_axe())
    options = {"runOnly": {"type": "tag", "values": _TAGS}, "resultTypes": ["violations"]}
    found: dict[str, Any] = await page.evaluate("options => axe.run(document, options)", options)
    lines = [
        f"{one['id']}: {one['help']}\n    "
        + "\n    ".join(f"{node['target']} {node['failureSummary']}" for node in one["nodes"][:5])
        for one in found["violations"]
    ]
    assert not lines, "\n".join(lines)
