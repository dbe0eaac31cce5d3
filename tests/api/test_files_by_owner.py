"""``files_by_owner``: by every route, an owner finds the owner's own files and no others."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.errors import error_of
from tests.conftest import MakeServer, servers
from tests.support.executions import Executions
from tests.support.home import Home
from tests.support.identities import token
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

USER = ("user", "contents:write")
TELLING = ("--identity-provider-class", "tests.support.identities:Telling")
TEXT = {"type": "file", "format": "text", "content": "Anna's"}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        home = Home()
        log = ("--audit-log", str(home.path / "audit.jsonl"))
        yield make_server(*TELLING, "--files-by-owner", *log, home=home)
    home.remove()


@pytest.fixture
async def anna(server: ServerProcess) -> AsyncIterator[RestClient]:
    async with RestClient(server.url, token("anna", USER)) as anna:
        await anna.request("PUT", "/api/contents/work", 201, json={"type": "directory"})
        yield anna
        await anna.http.delete("/api/contents/work")


@pytest.fixture
async def ben(server: ServerProcess) -> AsyncIterator[RestClient]:
    async with RestClient(server.url, token("ben", USER)) as ben:
        yield ben


@pytest.fixture
async def admin(server: ServerProcess) -> AsyncIterator[RestClient]:
    async with RestClient(server.url, server.token) as admin:
        yield admin


def who_saved(log: Path, path: str) -> list[tuple[str, str]]:
    """Who has saved a file, and whose it is, by the audit log."""
    told = [json.loads(line) for line in log.read_text().splitlines()]
    found = ("file_saved", path)
    return [
        (one["user"], one["owner"]) for one in told if (one["action"], one.get("path")) == found
    ]


async def names(rest: RestClient, path: str = "", **query: str) -> list[str]:
    listed = (await rest.request("GET", f"/api/contents/{path}", params=query)).json()
    return [model["name"] for model in listed["content"]]


async def cwd(rest: RestClient, kernel_id: str) -> str:
    await rest.wait_for_state(kernel_id, "idle")
    done = await Executions(rest, kernel_id).run("import os; print(os.getcwd(), end='')")
    return "".join(output["text"] for output in done["outputs"])


async def test_no_route_leads_to_anothers_files(
    server: ServerProcess, anna: RestClient, ben: RestClient
) -> None:
    await anna.request("PUT", "/api/contents/work/notes.txt", 201, json=TEXT)
    await anna.request("POST", "/api/contents/work/notes.txt/checkpoints", 201)
    home = server.home.root_dir / "anna"
    assert home.stat().st_mode & 0o777 == 0o700
    assert (home / "work" / "notes.txt").read_text() == "Anna's"
    assert await names(ben) == []
    for path in ("work/notes.txt", "anna/work/notes.txt", "../anna/work/notes.txt"):
        for asked in (f"/api/contents/{path}", f"/files/{path}"):
            assert (await ben.http.get(asked)).status_code in (400, 404)
        refused: list[httpx.Response] = [
            await ben.http.request(method, f"/api/contents/{path}{more}", json=body)
            for method, more, body in (
                ("PATCH", "", {"path": "stolen.txt"}),
                ("DELETE", "", None),
                ("GET", "/checkpoints", None),
                ("POST", "/checkpoints", None),
                ("POST", "/checkpoints/checkpoint", None),
                ("DELETE", "/checkpoints/checkpoint", None),
                ("POST", "/trust", None),
            )
        ]
        copied = await ben.http.post("/api/contents", json={"copy_from": path})
        assert all(one.status_code in (400, 404) for one in (*refused, copied))
    assert await names(ben) == []
    assert (home / "work" / "notes.txt").read_text() == "Anna's"


async def test_what_a_link_leads_to_is_not_served(
    server: ServerProcess, anna: RestClient, ben: RestClient
) -> None:
    await anna.request("PUT", "/api/contents/work/notes.txt", 201, json=TEXT)
    await names(ben)
    link = server.home.root_dir / "ben" / "link"
    link.symlink_to(server.home.root_dir / "anna" / "work")
    try:
        assert await names(ben) == []
        assert (await ben.http.get("/files/link/notes.txt")).status_code == 404
        body = {"name": "fake", "path": "link"}
        message = error_of(await ben.http.post("/api/kernels", json=body), 400, "invalid_path")
        assert "lies outside" in message
    finally:
        link.unlink()


async def test_a_kernel_and_a_session_work_in_their_owners_directory(
    server: ServerProcess, anna: RestClient, ben: RestClient
) -> None:
    home = server.home.root_dir / "anna"
    kernel = await anna.start_kernel("python3", path="work")
    asked = {"path": "work/a.ipynb", "type": "notebook", "name": "a", "kernel": {"name": "python3"}}
    session = (await anna.request("POST", "/api/sessions", 201, json=asked)).json()
    theirs = await ben.start_kernel("python3", path="work")  # which Ben does not have
    assert await cwd(anna, kernel["id"]) == str(home / "work")
    assert await cwd(anna, session["kernel"]["id"]) == str(home / "work")
    assert await cwd(ben, theirs["id"]) == str(server.home.root_dir / "ben")
    await Executions(anna, kernel["id"]).run("open('made.txt', 'w').write('x')")
    assert await names(anna, "work") == ["made.txt"]
    for path in ("../ben", "/../ben", "work/../../ben"):
        body = {"name": "python3", "path": path}
        error_of(await anna.http.post("/api/kernels", json=body), 400, "invalid_path")
    for rest, kernel_id in ((anna, kernel["id"]), (ben, theirs["id"])):
        await rest.delete(kernel_id)
    await anna.request("DELETE", f"/api/sessions/{session['id']}", 204)


async def test_a_path_is_resolved_in_the_owners_directory(
    server: ServerProcess, anna: RestClient, ben: RestClient
) -> None:
    await anna.request("PUT", "/api/contents/work/notes.txt", 201, json=TEXT)
    whole = str(server.home.root_dir / "anna" / "work" / "notes.txt")

    async def resolved(rest: RestClient, path: str) -> list[dict[str, Any]]:
        answer = await rest.request("GET", "/api/resolvePath", params={"path": path})
        found: list[dict[str, Any]] = answer.json()["resolved"]
        return found

    found = [{"scope": "server", "path": "work/notes.txt"}]
    for path in (whole, "work/notes.txt"):
        assert await resolved(anna, path) == found
        assert await resolved(ben, path) == []
    tutor = token("tutor", ["api:read", "contents:read!owner=anna"])
    async with RestClient(server.url, tutor) as elsewhere:
        assert await resolved(elsewhere, "") == []


async def test_an_administrator_names_the_owner(
    server: ServerProcess, anna: RestClient, ben: RestClient, admin: RestClient
) -> None:
    await anna.request("PUT", "/api/contents/work/notes.txt", 201, json=TEXT)
    assert await names(admin, owner="anna") == ["work"]
    assert await names(admin) == []
    file = await admin.request("GET", "/files/work/notes.txt", params={"owner": "anna"})
    assert file.text == "Anna's"
    changed = {**TEXT, "content": "marked"}
    await admin.request(
        "PUT", "/api/contents/work/notes.txt", json=changed, params={"owner": "anna"}
    )
    assert (await anna.request("GET", "/files/work/notes.txt")).text == "marked"
    saved = who_saved(server.home.path / "audit.jsonl", "work/notes.txt")
    assert saved[-2:] == [("anna", "anna"), ("anonymous", "anna")]
    for owner in ("anna", "nobody"):
        for path in ("/api/contents/work", "/files/work/notes.txt"):
            answer = await ben.http.get(path, params={"owner": owner})
            error_of(answer, 403, "not_authorized")
    answer = await admin.http.get("/api/contents", params={"owner": "nobody"})
    error_of(answer, 404, "contents_not_found")
    assert not (server.home.root_dir / "nobody").exists()


async def test_without_the_option_the_files_are_everybodys(make_server: MakeServer) -> None:
    server = make_server(*TELLING)
    async with RestClient(server.url, token("anna", USER)) as anna:
        await anna.request("PUT", "/api/contents/notes.txt", 201, json=TEXT)
        assert (server.home.root_dir / "notes.txt").read_text() == "Anna's"
        answer = await anna.http.get("/api/contents", params={"owner": "anna"})
        error_of(answer, 400, "invalid_request")
    async with RestClient(server.url, token("ben", USER)) as ben:
        assert await names(ben) == ["notes.txt"]
    assert os.listdir(server.home.root_dir) == ["notes.txt"]
