"""The list of tokens over REST.

These are the tests of `app.managers.owners.callers_tokens` and `app.managers.owners.errors`, too.
"""

from __future__ import annotations

import asyncio
import json
import os
import pwd
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.api.errors import error_of
from tests.conftest import MakeServer, servers
from tests.support.channels import Connector
from tests.support.commands import Commands
from tests.support.home import Home
from tests.support.identities import token as told
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

PATH = "/api/tokens"

FILE = "/api/contents/hers.txt"
TEXT = {"type": "file", "format": "text", "content": "hers alone"}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server("--identity-provider-class", "tests.support.identities:Telling")


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


class Clients:
    """Clients of one server, by the token that they show."""

    def __init__(self, server: ServerProcess, stack: AsyncExitStack) -> None:
        self._server = server
        self._stack = stack

    async def __call__(self, token: str) -> RestClient:
        return await self._stack.enter_async_context(RestClient(self._server.url, token))

    async def anna(self, *scopes: str, groups: tuple[str, ...] = ()) -> RestClient:
        """A new owner, whose name begins with anna."""
        return await self(told(f"anna-{uuid4()}", scopes or ("user",), groups=groups))


@pytest.fixture
def clients(server: ServerProcess, stack: AsyncExitStack) -> Clients:
    return Clients(server, stack)


async def make(rest: RestClient, name: str = "ci", *scopes: str, **more: Any) -> dict[str, Any]:
    body = {"name": name, "scopes": scopes or ("kernels:read",), **more}
    response = await rest.request("POST", PATH, 201, json=body)
    assert response.headers["cache-control"] == "no-store"
    made: dict[str, Any] = response.json()
    return made


async def listed(rest: RestClient, **query: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = (await rest.request("GET", PATH, params=query)).json()
    return found


async def test_an_owner_makes_uses_lists_and_revokes_its_own(clients: Clients) -> None:
    anna = await clients.anna(groups=("physics",))
    me = (await anna.request("GET", "/api/me")).json()["identity"]["username"]
    made = await make(anna, "ci", "kernels:write")
    token = made.pop("token")
    assert token.startswith(made["id"])
    assert (made["owner"], made["groups"], made["scopes"]) == (me, ["physics"], ["kernels:write"])
    assert made["last_used"] is None
    created, expires = (datetime.fromisoformat(made[name]) for name in ("created", "expires_at"))
    assert (expires - created).days in (89, 90)
    assert await listed(anna) == [made]
    assert (await anna.request("GET", f"{PATH}/{made['id']}")).json() == made
    ci = await clients(token)
    assert (await ci.request("GET", "/api/me")).json()["identity"]["username"] == me
    kernel = await ci.start_kernel("fake")
    assert (await anna.kernel(kernel["id"]))["id"] == kernel["id"]
    await ci.delete(kernel["id"])
    error_of(await ci.http.get(PATH), 403, "not_authorized")
    assert (await listed(anna))[0]["last_used"] is not None
    await anna.request("DELETE", f"{PATH}/{made['id']}", 204)
    error_of(await ci.http.get("/api/kernels"), 403, "unauthorized")
    error_of(await anna.http.get(f"{PATH}/{made['id']}"), 404, "token_not_found")
    error_of(await anna.http.delete(f"{PATH}/{made['id']}"), 404, "token_not_found")
    assert await listed(anna) == []


async def test_others_tokens_are_not_there(clients: Clients) -> None:
    anna, ben = await clients.anna(), await clients.anna()
    made = await make(anna)
    assert await listed(ben) == []
    assert await listed(ben, owner=made["owner"]) == []
    for method in ("GET", "DELETE"):
        response = await ben.http.request(method, f"{PATH}/{made['id']}")
        error_of(response, 404, "token_not_found")
    await make(ben)  # of the same name
    assert len(await listed(anna)) == 1


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ({"scopes": ["*"]}, "*"),
        ({"scopes": ["admin"]}, "*"),
        ({"scopes": ["kernels:admin"]}, "kernels:admin"),
        ({"scopes": ["kernels:read", "metrics:read"]}, "metrics:read"),
        ({"scopes": ["kernels:read!owner=ben"]}, "kernels:read!owner=ben"),
        ({"scopes": ["kernels:read"], "groups": ["maths"]}, "group maths"),
    ],
)
async def test_no_token_may_do_more_than_who_makes_it(
    clients: Clients, body: dict[str, Any], refused: str
) -> None:
    anna = await clients.anna(groups=("physics",))
    answer = await anna.http.post(PATH, json={"name": "a", **body})
    assert error_of(answer, 403, "scope_not_given").endswith(f": {refused}")
    assert await listed(anna) == []


async def test_nobody_but_an_administrator_makes_one_for_another(
    clients: Clients, server: ServerProcess
) -> None:
    anna, owner = await clients.anna(), f"ben-{uuid4()}"
    body = {"name": "a", "scopes": ["kernels:read"], "owner": owner}
    error_of(await anna.http.post(PATH, json=body), 403, "not_authorized")
    keeper = await clients.anna("tokens:admin", "kernels:read")
    answer = await keeper.http.post(PATH, json=body)
    assert error_of(answer, 403, "scope_not_given")
    admin = await clients(server.token)
    made = await make(admin, "a", "user", owner=owner, groups=["maths"], expires_in=None)
    assert (made["owner"], made["groups"], made["expires_at"]) == (owner, ["maths"], None)
    assert made["made_with"] == "server"
    assert [found["id"] for found in await listed(admin, owner=owner)] == [made["id"]]
    assert made["id"] in {found["id"] for found in await listed(keeper)}
    answer = await admin.http.post(PATH, json={**body, "owner": owner.upper(), "name": "b"})
    assert owner in error_of(answer, 409, "token_name_taken")
    await keeper.request("DELETE", f"{PATH}/{made['id']}", 204)


async def test_one_that_was_made_with_another_ends_with_it(
    clients: Clients, server: ServerProcess, stack: AsyncExitStack
) -> None:
    anna = await clients.anna()
    first = await make(anna, "first", "user", expires_in=3600)
    laptop = await clients(first["token"])
    second = await make(laptop, "second", "user", expires_in=None)
    assert second["made_with"] == first["id"]
    assert second["expires_at"] == first["expires_at"]
    third = await make(await clients(second["token"]), "third", "kernels:execute")
    kernel = await anna.start_kernel("fake")
    channels = await Connector(server.ws_url, third["token"], stack)(kernel["id"])
    await anna.request("DELETE", f"{PATH}/{first['id']}", 204)
    assert (await channels.closed()).code == 4401
    assert await listed(anna) == []
    await anna.delete(kernel["id"])


async def test_a_token_can_revoke_itself_and_is_told_so(clients: Clients) -> None:
    anna = await clients.anna()
    made = await make(anna, "a", "tokens:write")
    own = await clients(made["token"])
    await own.request("DELETE", f"{PATH}/{made['id']}", 204)
    error_of(await own.http.get(PATH), 403, "unauthorized")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "invalid_request"),
        ({"name": "a"}, "invalid_request"),
        ({"name": "a", "scopes": "user"}, "invalid_request"),
        ({"name": "a", "scopes": ["user"], "expires_in": 0}, "invalid_request"),
        ({"name": "a", "scopes": ["user"], "expires_in": 1e12}, "invalid_request"),
        ({"name": "a", "scopes": ["user"], "expires_in": "30d"}, "invalid_request"),
        ({"name": "a", "scopes": ["user"], "token": "kk_mine"}, "invalid_request"),
        ({"name": "a", "scopes": ["user"] * 101}, "invalid_request"),
        ({"name": "", "scopes": ["user"]}, "invalid_token"),
        ({"name": "a/b", "scopes": ["user"]}, "invalid_token"),
        ({"name": "a\x1b[31m", "scopes": ["user"]}, "invalid_token"),
        ({"name": "a" * 1000, "scopes": ["user"]}, "invalid_token"),
        ({"name": "a\ud800", "scopes": ["user"]}, "invalid_token"),
        ({"name": "a", "scopes": ["users"]}, "invalid_token"),
        ({"name": "a", "scopes": ["kernels:read"], "owner": ".."}, "invalid_token"),
        ({"name": "a", "scopes": ["kernels:read"], "groups": ["a\nb"]}, "invalid_token"),
    ],
)
async def test_what_makes_no_sense_is_refused(
    clients: Clients, body: dict[str, Any], code: str
) -> None:
    anna = await clients.anna()
    answer = await anna.http.post(PATH, content=json.dumps(body))
    assert len(error_of(answer, 400, code)) < 300
    assert await listed(anna) == []


async def test_the_same_name_again_is_a_conflict_in_any_case_of_letters(clients: Clients) -> None:
    anna = await clients.anna()
    await make(anna, "Laptop")
    answer = await anna.http.post(PATH, json={"name": "LAPTOP", "scopes": ["kernels:read"]})
    error_of(answer, 409, "token_name_taken")
    made = await asyncio.gather(
        *(
            anna.http.post(PATH, json={"name": "phone", "scopes": ["kernels:read"]})
            for _ in range(10)
        )
    )
    assert sorted(response.status_code for response in made) == [201] + [409] * 9


async def test_the_preset_of_users_opens_no_file(clients: Clients, server: ServerProcess) -> None:
    """The files are everybody's: a notebook of one owner's must not be open to all others."""
    async with RestClient(server.url, server.token) as admin:
        await admin.request("PUT", FILE, 201, json=TEXT)
        alone = await clients((await make(admin, "alone", "user", owner="alone"))["token"])
        for method, body in (("GET", None), ("PUT", TEXT), ("DELETE", None)):
            refused = await alone.http.request(method, FILE, json=body)
            assert "contents:" in error_of(refused, 403, "not_authorized")
        refused = await alone.http.get("/files/hers.txt")
        assert "contents:read" in error_of(refused, 403, "not_authorized")
        scopes = ("user", "contents:write")
        team = await clients((await make(admin, "team", *scopes, owner="team"))["token"])
        assert (await team.request("GET", FILE)).json()["content"] == TEXT["content"]
        await team.request("DELETE", FILE, 204)


async def test_a_list_that_cannot_be_written_is_told(make_server: MakeServer, home: Home) -> None:
    server = make_server(home=home)
    async with RestClient(server.url, server.token) as admin:
        made = await make(admin)
        path = home.state_dir / "tokens.sqlite"
        path.chmod(0o644)
        body = {"name": "b", "scopes": ["user"]}
        error_of(await admin.http.post(PATH, json=body), 503, "tokens_unavailable")
        error_of(await admin.http.delete(f"{PATH}/{made['id']}"), 503, "tokens_unavailable")
        wrong = {"Authorization": "token kk_" + "0" * 64}
        answer = await admin.http.get("/api/kernels", headers=wrong)
        error_of(answer, 503, "identity_unavailable")
        path.chmod(0o600)
        await admin.request("DELETE", f"{PATH}/{made['id']}", 204)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_the_audit_log_tells_who_has_made_and_revoked_which(
    make_server: MakeServer, home: Home
) -> None:
    path = home.path / "audit.jsonl"
    server = make_server("--audit-log", str(path), home=home)
    async with RestClient(server.url, server.token) as admin:
        made = await make(admin, "ci", "user", owner="anna")
        await admin.request("DELETE", f"{PATH}/{made['id']}", 204)
    await eventually(lambda: "token_revoked" in path.read_text())
    assert made["token"] not in path.read_text()
    first, second = records(path)
    assert (first["action"], second["action"]) == ("token_created", "token_revoked")
    for record in (first, second):
        assert (record["user"], record["credential"]) == ("anonymous", "server")
        assert (record["token"], record["token_name"]) == (made["id"], "ci")
        assert record["token_owner"] == "anna"


async def test_the_audit_log_tells_who_has_used_the_command(
    make_server: MakeServer, home: Home, commands: Commands
) -> None:
    path = home.path / "audit.jsonl"
    server = make_server("--audit-log", str(path), home=home)
    # While a token is in force, the server looks at the list by itself.
    async with RestClient(server.url, server.token) as admin:
        await make(admin, "watched", "user")

    async def command(count: int, *arguments: str) -> None:
        ran = await asyncio.to_thread(commands.run, "tokens", *arguments, home=home)
        assert ran.returncode == 0, ran
        await eventually(lambda: len(records(path)) == count)

    await command(2, "create", "ci", "--scopes", "user")
    await command(3, "revoke", "ci")
    uid = os.getuid()
    _, *found = records(path)
    assert [record["action"] for record in found] == ["token_created", "token_revoked"]
    for record in found:
        assert record["token_name"] == "ci"
        assert "user" not in record
        assert record["actor"] == f"uid:{uid} ({pwd.getpwuid(uid).pw_name})"
