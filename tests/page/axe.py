"""What axe finds in a page: rules of WCAG 2.2, levels A and AA."""

from __future__ import annotations

from functools import cache
from typing import Any

from playwright.async_api import Page

from tests.support.browser import DESKTOP, PHONE
from tests.support.node_packages import install
from tests.support.page import SOURCES

__all__ = ["assert_accessible", "assert_looks"]

_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
_OF_COLOURS = ["color-contrast", "link-in-text-block"]
_DRAWN = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


@cache
def _axe() -> str:
    return (install(SOURCES) / "node_modules" / "axe-core" / "axe.min.js").read_text()


async def assert_looks(page: Page) -> None:
    """Raises `AssertionError` with what is wrong with a view in any of its looks.

    Axe finds nothing in light and dark, on a desktop and on a phone, and the page is no wider than
    the window. What does not depend on the colours is looked at once for each width.
    """
    for viewport, scheme, rules in (
        (DESKTOP, "light", None),
        (DESKTOP, "dark", _OF_COLOURS),
        (PHONE, "dark", None),
        (PHONE, "light", _OF_COLOURS),
    ):
        await page.set_viewport_size(viewport)  # type: ignore[arg-type]
        await page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        await page.evaluate(_DRAWN)
        await assert_accessible(page, rules)
        wide, window = await page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide <= window, f"{wide} pixels of {window} in {scheme}"
    await page.set_viewport_size(DESKTOP)  # type: ignore[arg-type]
    await page.emulate_media(color_scheme="light")


async def assert_accessible(page: Page, rules: list[str] | None = None) -> None:
    """Raises `AssertionError` with what axe finds in the page as it stands, frames included.

    ``rules`` are those that are looked at; without them all of WCAG are.
    """
    for frame in page.frames:
        if await frame.evaluate("typeof axe") == "undefined":
            await frame.evaluate(_axe())
    only = {"type": "rule", "values": rules} if rules else {"type": "tag", "values": _TAGS}
    options = {"runOnly": only, "resultTypes": ["violations"]}
    found: dict[str, Any] = await page.evaluate("options => axe.run(document, options)", options)
    lines = [
        f"{one['id']}: {one['help']}\n    "
        + "\n    ".join(f"{node['target']} {node['failureSummary']}" for node in one["nodes"][:5])
        for one in found["violations"]
    ]
    assert not lines, "\n".join(lines)
