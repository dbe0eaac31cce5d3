"""``/api/resolvePath``: where a path leads to, for the server and for a kernel.

These are tests of `app.managers.kernels.locating`.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.errors import error_of
from tests.support.rest import RestClient
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess

UNKNOWN = "111-111-111-111-111"


@pytest.fixture
async def kernel_id(start: KernelStarter, server: ServerProcess) -> str:
    """A kernel that works in ``work``, where ``there.py`` is; the root has ``both.py`` too."""
    root = server.home.root_dir
    (root / "work").mkdir(exist_ok=True)
    for name in ("work/there.py", "work/both.py", "both.py"):
        (root / name).touch()
    (root.parent / "secret.py").touch()
    return (await start("fake", path="work")).id


async def _resolve(rest: RestClient, **params: str) -> dict[str, Any]:
    response = await rest.request("GET", "/api/resolvePath", params=params)
    assert response.headers["Content-Type"] == "application/json"
    body: dict[str, Any] = response.json()
    return body


async def test_a_path_of_the_server_is_relative_to_its_root(
    rest: RestClient, server: ServerProcess, kernel_id: str
) -> None:
    found = {"resolved": [{"scope": "server", "path": "both.py"}]}
    assert await _resolve(rest, path="both.py") == found
    assert await _resolve(rest, path=str(server.home.root_dir / "both.py")) == found
    assert await _resolve(rest, path="both.py", kernel="") == found


async def test_a_path_of_a_kernel_is_whole(
    rest: RestClient, server: ServerProcess, kernel_id: str
) -> None:
    whole = str(server.home.root_dir / "work" / "there.py")
    found = {"resolved": [{"scope": "kernel", "path": whole}]}
    assert await _resolve(rest, path="there.py", kernel=kernel_id) == found


async def test_a_path_may_be_of_both(
    rest: RestClient, server: ServerProcess, kernel_id: str
) -> None:
    assert await _resolve(rest, path="both.py", kernel=kernel_id) == {
        "resolved": [
            {"scope": "server", "path": "both.py"},
            {"scope": "kernel", "path": str(server.home.root_dir / "work" / "both.py")},
        ]
    }


@pytest.mark.parametrize("path", ["nowhere.py", "a\0b", "~nobody-of-this-name/a", "a" * 5000])
async def test_what_does_not_exist_is_of_none(rest: RestClient, kernel_id: str, path: str) -> None:
    assert await _resolve(rest, path=path, kernel=kernel_id) == {"resolved": []}


@pytest.mark.parametrize("path", ["../secret.py", "secret.py", "/etc/passwd", "~", "/"])
async def test_the_server_tells_nothing_of_what_is_outside_its_root(
    rest: RestClient, server: ServerProcess, kernel_id: str, path: str
) -> None:
    resolved = (await _resolve(rest, path=path))["resolved"]
    assert resolved == ([{"scope": "server", "path": ""}] if path == "/" else [])


@pytest.mark.parametrize("path", ["../both.py", "out.py", "/etc/passwd", "~", "{root}/both.py"])
async def test_a_kernel_tells_nothing_of_what_is_outside_its_directory(
    rest: RestClient, server: ServerProcess, kernel_id: str, path: str
) -> None:
    root = server.home.root_dir
    link = root / "work" / "out.py"
    link.unlink(missing_ok=True)
    link.symlink_to(root / "both.py")
    try:
        found = await _resolve(rest, path=path.format(root=root), kernel=kernel_id)
    finally:
        link.unlink()
    assert "kernel" not in [place["scope"] for place in found["resolved"]]


async def test_a_kernel_that_there_is_not_is_named(rest: RestClient, kernel_id: str) -> None:
    reason = f"Kernel {UNKNOWN} could not be found"
    unresolved = [{"scope": "kernel", "reason": reason}]
    assert await _resolve(rest, path="nowhere.py", kernel=UNKNOWN) == {
        "resolved": [],
        "unresolved": unresolved,
    }
    assert await _resolve(rest, path="both.py", kernel=UNKNOWN) == {
        "resolved": [{"scope": "server", "path": "both.py"}],
        "unresolved": unresolved,
    }


async def test_a_dead_kernel_resolves_nothing(rest: RestClient, kernel_id: str) -> None:
    dead = await rest.start_kernel("fake-exit", path="work")
    await rest.wait_for_state(dead["id"], "dead")
    assert await _resolve(rest, path="there.py", kernel=dead["id"]) == {"resolved": []}
    await rest.delete(dead["id"])


async def test_a_path_is_needed(rest: RestClient) -> None:
    response = await rest.http.get("/api/resolvePath", params={"kernel": UNKNOWN})
    assert error_of(response, 400, "invalid_request") == "Missing argument path"


async def test_asking_is_not_activity(rest: RestClient, kernel_id: str) -> None:
    before = (await rest.status())["last_activity"]
    await _resolve(rest, path="both.py", kernel=kernel_id)
    assert (await rest.status())["last_activity"] == before
