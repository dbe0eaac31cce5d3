"""The one form of a request's path: the proxy's prefix, and what is percent-encoded."""

from __future__ import annotations

import pytest

from app.api.prefix import PathMiddleware
from tests.support.asgi import Answer, ask, scope

WORDS = ("api", "kernels", "kernelspecs")


async def path_of(prefix: str, path: str, raw_path: str) -> tuple[str, str]:
    """The path and the root path that the application sees."""
    app = Answer()
    await ask(PathMiddleware(app, prefix, WORDS), scope(path, raw_path=raw_path.encode()))
    (seen,) = app.scopes
    return seen["path"], seen.get("root_path", "")


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/api/kernels", "/api/kernels"),
        ("/api/%6bernels", "/api/%6bernels"),  # the service's own words only as they are
        ("/%61pi/kernels", "/%61pi/kernels"),
        ("/api/kernelspecs/a%20b", "/api/kernelspecs/a b"),
        ("/api/kernelspecs/a%2Fb", "/api/kernelspecs/a/b"),
        ("/api/kernelspecs/%C3%A4", "/api/kernelspecs/\u00e4"),
    ],
)
async def test_parameters_are_decoded_and_words_are_not(raw: str, path: str) -> None:
    assert await path_of("", "/decoded/by/the/server", raw) == (
        (path, "") if "%" in raw else ("/decoded/by/the/server", "")
    )


@pytest.mark.parametrize("path", ["/keep/api/kernels", "/api/kernels"])
async def test_a_prefix_is_there_whether_the_proxy_strips_it_or_not(path: str) -> None:
    assert await path_of("/keep", path, path) == ("/keep/api/kernels", "/keep")


async def test_what_only_begins_like_the_prefix_has_not_got_it() -> None:
    assert await path_of("/keep", "/keeper", "/keeper") == ("/keep/keeper", "/keep")
    assert await path_of("/keep", "/keep", "/keep") == ("/keep", "/keep")


async def test_the_lifespan_has_no_path() -> None:
    app = Answer()
    await ask(PathMiddleware(app, "/keep", WORDS), {"type": "lifespan"})
    assert app.scopes == [{"type": "lifespan"}]
