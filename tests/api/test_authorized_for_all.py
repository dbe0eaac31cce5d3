"""What each route asks the authorizer for: all that it does, before it reads anything."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import SecretStr
from starlette.routing import BaseRoute

from app.api.access import Access, declared_access
from app.api.bodies import MAX_CONTAINERS, MAX_DEPTH, check_nesting, parse
from app.main import create_app
from app.managers.errors import InvalidJSON
from app.managers.processes.environment import is_code, needs_execute, without_password
from app.managers.sessions.sessions import MAX_SESSIONS
from app.settings import Settings
from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.rest import RestClient

TABLE = Path(__file__).parents[2] / "docs" / "authorization.md"


def _asks(access: Access) -> str:
    if access.public:
        return "nothing"
    return ", ".join(f"`{action}` on `{res}`" for res, action in access.asked) or "the token"


def _lines(route: BaseRoute) -> list[str]:
    access = declared_access(route)
    assert access is not None
    path = getattr(route, "path")  # noqa: B009
    methods = sorted(getattr(route, "methods", None) or {"WebSocket"})
    return [f"| {method} | `{path}` | {_asks(access)} |" for method in methods]


def test_the_table_of_the_documentation_is_what_the_routes_declare(tmp_path: Path) -> None:
    app = create_app(Settings(state_dir=tmp_path, on_shutdown="stop", token=SecretStr("t" * 32)))
    lines = (line for route in app.routes for line in _lines(route))
    # The page's files are named after what is in them.
    declared = sorted({re.sub(r"`/page/[^`]+\.[a-z]+`", "`/page/{file}`", line) for line in lines})
    rows = re.findall(r"^\| (?:[A-Z]+|WebSocket) \| .*$", TABLE.read_text(), re.M)
    assert sorted(rows) == declared, "docs/authorization.md:\n" + "\n".join(declared)


async def test_sessions_start_and_end_kernels(make_server: MakeServer) -> None:
    server = make_server("--authorizer-class", "tests.support.authorizers:NoKernels")
    unknown = "01234567-89ab-cdef-0123-456789abcdef"
    async with RestClient(server.url, server.token) as rest:
        body = {"path": "a", "type": "notebook", "kernel": {"name": "fake"}}
        error_of(await rest.http.post("/api/sessions", json=body), 403, "not_authorized")
        error_of(await rest.http.delete(f"/api/sessions/{unknown}"), 403, "not_authorized")
        another = {"kernel": {"name": "fake"}}
        changed = await rest.http.patch(f"/api/sessions/{unknown}", json=another)
        error_of(changed, 403, "not_authorized")
        renamed = await rest.http.patch(f"/api/sessions/{unknown}", json={"path": "b"})
        error_of(renamed, 404, "session_not_found")
        error_of(await rest.http.patch("/api/me", json={"name": "x"}), 403, "not_authorized")


async def test_a_body_is_not_read_for_who_may_not_send_it(make_server: MakeServer) -> None:
    server = make_server("--authorizer-class", "tests.support.authorizers:ReadOnly")
    async with RestClient(server.url, server.token) as rest:
        for body in (b"no JSON", b"[" * 2000, b'{"name":"' + b"x" * 2**21):
            response = await rest.http.post("/api/kernels", content=body)
            error_of(response, 403, "not_authorized")


async def test_code_in_the_environment_takes_the_permission_to_execute(
    make_server: MakeServer,
) -> None:
    server = make_server("--authorizer-class", "tests.support.authorizers:NoExecute")
    async with RestClient(server.url, server.token) as rest:
        for name in ("PYTHONWARNINGS", "LD_PRELOAD", "BROWSER", "ANY_OTHER"):
            body = {"name": "fake", "env": {"KERNEL_USERNAME": "ada", name: "x"}}
            response = await rest.http.post("/api/kernels", json=body)
            assert name in error_of(response, 403, "environment_not_allowed")
        assert await rest.kernels() == []
        kernel = await rest.start_kernel("fake", env={"KERNEL_USERNAME": "ada", "TZ": "UTC"})
        await rest.delete(kernel["id"])


async def test_code_in_the_environment_can_be_switched_off(make_server: MakeServer) -> None:
    server = make_server("--no-client-env-code")
    async with RestClient(server.url, server.token) as rest:
        body = {"name": "fake", "env": {"PYTHONPATH": "/nowhere"}}
        response = await rest.http.post("/api/kernels", json=body)
        error_of(response, 403, "environment_not_allowed")
        kernel = await rest.start_kernel("fake", env={"ANY_OTHER": "x"})
        await rest.delete(kernel["id"])


@pytest.mark.parametrize("name", ["LD_PRELOAD", "PYTHONPATH", "pythonpath", "BASH_ENV", "PATH"])
def test_no_pattern_allows_what_is_code(name: str) -> None:
    assert is_code(name)
    assert needs_execute([name], ["*"]) == name
    assert needs_execute(["KERNEL_ID", "LC_ALL"], ["KERNEL_*", "LC_*"]) is None


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://u:p@proxy:1", "http://proxy:1"),
        ("http://u:p/q@x@proxy:1/", "http://proxy:1/"),
        ("u:p@proxy:1", "proxy:1"),
        ("http://proxy:1", "http://proxy:1"),
        ("localhost,.example.org", "localhost,.example.org"),
        ("", ""),
    ],
)
def test_a_proxy_is_told_without_its_password(url: str, told: str) -> None:
    assert without_password(url) == told


def test_the_depth_of_a_body_is_bounded() -> None:
    check_nesting(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    assert parse(b'["' + b"[" * 500 + b'\\"[{"]') == ["[" * 500 + '"[{']
    for deep in (b"[" * (MAX_DEPTH + 1), b'{"a":' * 100_000, b'"\\"" ' + b"[" * 100_000):
        with pytest.raises(InvalidJSON, match="deeper"):
            check_nesting(deep)
    with pytest.raises(InvalidJSON, match="lists"):
        check_nesting(b"[" + b"[]," * MAX_CONTAINERS + b"[]]")
    for broken in (b"\xff", b"{", b""):
        with pytest.raises(InvalidJSON):
            parse(broken)


async def test_what_is_kept_of_sessions_is_bounded(rest: RestClient) -> None:
    kernel = await rest.start_kernel("fake")
    body = {"path": "a", "type": "notebook", "kernel": {"id": kernel["id"]}}
    for field in ("path", "type", "name"):
        long = {**body, field: "x" * 5000}
        error_of(await rest.http.post("/api/sessions", json=long), 400, "invalid_request")
    for number in range(MAX_SESSIONS):
        made = await rest.http.post("/api/sessions", json={**body, "path": f"s{number}"})
        assert made.status_code == 201
    error_of(await rest.http.post("/api/sessions", json=body), 429, "too_many_sessions")
    await rest.delete(kernel["id"])
    large = {"display_name": "x" * 2**17}
    error_of(await rest.http.patch("/api/me", json=large), 413, "request_too_large")
