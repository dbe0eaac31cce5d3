"""The authorizer: what it is asked for each route, and that its answer counts."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from websockets.asyncio.client import connect as websocket_connect
from websockets.exceptions import InvalidStatus

from tests.api.errors import error_of
from tests.conftest import MakeServer, servers
from tests.support.authorizers import DECISIONS
from tests.support.commands import Commands
from tests.support.home import Home
from tests.support.processes import eventually, kill_all
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

ID = "01234567-89ab-cdef-0123-456789abcdef"

# Of every route that asks: method, path, action, resource.
ROUTES = [
    ("GET", "/api/status", "read", "api"),
    ("GET", "/api/spec.yaml", "read", "api"),
    ("GET", "/api/resolvePath?path=a", "read", "api"),
    ("GET", "/openapi.json", "read", "api"),
    ("GET", "/docs", "read", "api"),
    ("GET", "/api/kernels", "read", "kernels"),
    ("POST", "/api/kernels", "write", "kernels"),
    ("GET", f"/api/kernels/{ID}", "read", "kernels"),
    ("DELETE", f"/api/kernels/{ID}", "write", "kernels"),
    ("POST", f"/api/kernels/{ID}/interrupt", "write", "kernels"),
    ("POST", f"/api/kernels/{ID}/restart", "write", "kernels"),
    ("GET", "/api/kernelspecs", "read", "kernelspecs"),
    ("GET", "/api/kernelspecs/fake", "read", "kernelspecs"),
    ("GET", "/kernelspecs/fake/logo-64x64.png", "read", "kernelspecs"),
    ("HEAD", "/kernelspecs/fake/logo-64x64.png", "read", "kernelspecs"),
    ("GET", "/api/sessions", "read", "sessions"),
    ("POST", "/api/sessions", "write", "sessions"),
    ("GET", f"/api/sessions/{ID}", "read", "sessions"),
    ("PATCH", f"/api/sessions/{ID}", "write", "sessions"),
    ("DELETE", f"/api/sessions/{ID}", "write", "sessions"),
    ("GET", "/api/contents", "read", "contents"),
    ("POST", "/api/contents", "write", "contents"),
    ("GET", "/api/contents/a", "read", "contents"),
    ("PUT", "/api/contents/a", "write", "contents"),
    ("PATCH", "/api/contents/a", "write", "contents"),
    ("DELETE", "/api/contents/a", "write", "contents"),
    ("GET", "/api/contents/a/checkpoints", "read", "contents"),
    ("POST", "/api/contents/a/checkpoints", "write", "contents"),
    ("POST", "/api/contents/a/checkpoints/b", "write", "contents"),
    ("DELETE", "/api/contents/a/checkpoints/b", "write", "contents"),
    ("POST", "/api/contents/a/trust", "write", "contents"),
    ("GET", "/files/a", "read", "contents"),
    ("HEAD", "/files/a", "read", "contents"),
    ("POST", "/api/events", "write", "events"),
    ("PATCH", "/api/me", "write", "api"),
]
# What some of them ask for then.
ALSO = {
    ("POST", "/api/sessions"): [("write", "kernels")],
    ("DELETE", f"/api/sessions/{ID}"): [("write", "kernels")],
    ("PATCH", "/api/me"): [("write", "kernels")],
}
WEBSOCKETS = [
    (f"/api/kernels/{ID}/channels", "execute", "kernels"),
    ("/api/events/subscribe", "execute", "events"),
]


class Decisions:
    """The file of an `app`-side `ByFile`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.allow()

    def allow(self, *pairs: tuple[str, str]) -> None:
        """Allow just these from now on."""
        self._path.write_text(json.dumps({"allow": pairs, "asked": []}))

    @property
    def asked(self) -> list[tuple[str, str]]:
        """What has been asked since then."""
        return [(action, res) for action, res in json.loads(self._path.read_text())["asked"]]


@pytest.fixture(scope="module")
def decided(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server whose authorizer does what `decisions` say."""
    home = Home()
    path = home.path / "decisions.json"
    arguments = ("--authorizer-class", "tests.support.authorizers:ByFile")
    try:
        with servers(request.config) as make_server:
            yield make_server(
                *arguments,
                *("--default-kernel-name", "fake"),
                env={DECISIONS: str(path)},
                home=home,
            )
    finally:
        kill_all(home.processes())
        home.remove()


@pytest.fixture
def decisions(decided: ServerProcess) -> Decisions:
    return Decisions(decided.home.path / "decisions.json")


@pytest.fixture
async def client(decided: ServerProcess, decisions: Decisions) -> AsyncIterator[RestClient]:
    async with RestClient(decided.url, decided.token) as client:
        yield client
        decisions.allow(("read", "kernels"), ("write", "kernels"))
        for kernel in await client.kernels():
            await client.delete(kernel["id"])


@pytest.mark.parametrize(("method", "path", "action", "resource"), ROUTES)
async def test_what_is_not_allowed_is_refused(
    client: RestClient,
    decisions: Decisions,
    method: str,
    path: str,
    action: str,
    resource: str,
) -> None:
    others = {(other, res) for _, _, other, res in ROUTES} - {(action, resource)}
    decisions.allow(*others)
    body: object = {} if method in ("POST", "PATCH") else None
    response = await client.http.request(method, path, json=body)
    assert decisions.asked == [(action, resource)]
    if method == "HEAD":
        assert response.status_code == 403
    else:
        message = error_of(response, 403, "not_authorized")
        assert message == f"User is not authorized to {action} on resource: {resource}."


@pytest.mark.parametrize(("method", "path", "action", "resource"), ROUTES)
async def test_what_is_allowed_goes_on(
    client: RestClient,
    decisions: Decisions,
    method: str,
    path: str,
    action: str,
    resource: str,
) -> None:
    also = ALSO.get((method, path), ())
    decisions.allow((action, resource), *also)
    body: object = {} if method in ("POST", "PATCH") else None
    response = await client.http.request(method, path, json=body)
    assert decisions.asked == [(action, resource), *also]
    assert response.status_code in (200, 201, 400, 404)


@pytest.mark.parametrize("path", ["/api", "/api/me"])
async def test_some_routes_are_not_its_business(
    client: RestClient, decisions: Decisions, path: str
) -> None:
    await client.request("GET", path)
    assert decisions.asked == []


async def test_nothing_is_done_before_it_has_said_yes(
    client: RestClient, decisions: Decisions
) -> None:
    decisions.allow(("read", "kernels"))
    await client.request("POST", "/api/kernels", 403)
    assert await client.kernels() == []


@pytest.mark.parametrize(("path", "action", "resource"), WEBSOCKETS)
async def test_a_websocket_is_refused_before_the_upgrade(
    decided: ServerProcess, decisions: Decisions, path: str, action: str, resource: str
) -> None:
    decisions.allow(("read", resource), ("write", resource))
    url = f"{decided.ws_url}{path}?token={decided.token}"
    with pytest.raises(InvalidStatus) as refused:
        async with websocket_connect(url):
            pass
    response = refused.value.response
    assert response.status_code == 403
    assert json.loads(response.body or b"") == {
        "message": f"User is not authorized to {action} on resource: {resource}.",
        "reason": None,
        "code": "not_authorized",
    }
    assert decisions.asked == [(action, resource)]


async def test_a_websocket_that_is_allowed_opens(
    client: RestClient, decided: ServerProcess, decisions: Decisions
) -> None:
    decisions.allow(("write", "kernels"), ("execute", "kernels"))
    kernel = await client.start_kernel()
    url = f"{decided.ws_url}/api/kernels/{kernel['id']}/channels?token={decided.token}"
    async with websocket_connect(url) as websocket:
        assert await websocket.recv()


async def test_it_is_not_asked_about_somebody_without_the_token(
    decided: ServerProcess, decisions: Decisions
) -> None:
    decisions.allow(("read", "kernels"))
    async with RestClient(decided.url, "wrong") as stranger:
        await stranger.request("GET", "/api/kernels", 403)
    assert decisions.asked == []


async def test_the_user_can_ask_what_it_would_say(client: RestClient, decisions: Decisions) -> None:
    decisions.allow(("read", "kernels"), ("execute", "kernels"), ("write", "contents"))
    asked = {"kernels": ["read", "write", "execute"], "contents": ["write"], "terminals": ["read"]}
    response = await client.request("GET", "/api/me", params={"permissions": json.dumps(asked)})
    permissions = response.json()["permissions"]
    assert permissions.pop("updatable_fields")
    assert permissions == {"kernels": ["read", "execute"], "contents": ["write"], "terminals": []}


# Other authorizers


async def test_it_may_be_a_coroutine(make_server: MakeServer) -> None:
    server = make_server("--authorizer-class", "tests.support.authorizers:ReadOnly")
    async with RestClient(server.url, server.token) as rest:
        assert await rest.kernels() == []
        refused = await rest.http.post("/api/kernels")
        error_of(refused, 403, "not_authorized")
        assert await rest.kernels() == []


async def test_one_that_raises_refuses_and_affects_nothing_else(make_server: MakeServer) -> None:
    server = make_server("--authorizer-class", "tests.support.authorizers:Broken")
    async with RestClient(server.url, server.token) as rest:
        for method in ("GET", "POST"):
            response = await rest.http.request(method, "/api/sessions", json={})
            message = error_of(response, 500, "authorizer_failed")
            assert message == "The authorizer could not decide"
        asked = {"permissions": '{"kernels": ["read"], "sessions": ["read"]}'}
        response = await rest.http.get("/api/me", params=asked)
        error_of(response, 500, "authorizer_failed")
        kernel = await rest.start_kernel("fake")
        with pytest.raises(InvalidStatus) as refused:
            async with websocket_connect(
                f"{server.ws_url}/api/kernels/{kernel['id']}/channels?token={server.token}"
            ):
                pass
        assert refused.value.response.status_code == 500
        assert b'"authorizer_failed"' in (refused.value.response.body or b"")
        await rest.delete(kernel["id"])
    await eventually(lambda: "RuntimeError: the password is swordfish" in server.output())


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("nowhere:Authorizer", "No module named 'nowhere'"),
        ("tests.support.authorizers:Nobody", "has no attribute 'Nobody'"),
        ("tests.support.authorizers", "tests.support.authorizers"),
        ("tests.support.authorizers:DECISIONS", "tests.support.authorizers:DECISIONS is no"),
        ("tests.support.authorizers:Demanding", "missing 1 required positional argument"),
        ("tests.support.authorizers:Mute", "has no method is_authorized"),
        ("", ""),
    ],
)
def test_one_that_cannot_be_used_stops_the_start_with_one_line(
    commands: Commands, home: Home, name: str, reason: str
) -> None:
    done = commands.run("--port", "0", "--token", "t", "--authorizer-class", name, home=home)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("kernelkeep: --authorizer-class: ")
    assert reason in line
