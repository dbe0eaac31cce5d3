"""The contents resource: files, notebooks and directories, as Jupyter's clients use them.

These are the tests of `app.managers.files.contents`.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx
import pytest

from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.home import Home
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

MODEL_KEYS = {
    *("name", "path", "last_modified", "created", "type", "size", "writable", "mimetype"),
    *("format", "content", "hash", "hash_algorithm"),
}
CELL = {"cell_type": "code", "id": "a", "metadata": {}, "source": "1 + 1", "outputs": []}
NOTEBOOK = {
    "nbformat": 4,
    "nbformat_minor": 5,
    "metadata": {},
    "cells": [{**CELL, "execution_count": None}],
}


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


@pytest.fixture
def root(server: ServerProcess) -> Iterator[Path]:
    """The root directory, with something to be refused beside it; emptied after the test."""
    root = server.home.root_dir
    yield root
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_symlink() or not path.is_dir():
            path.unlink()
        else:
            path.rmdir()


def url(path: str) -> str:
    return f"/api/contents/{quote(path)}".removesuffix("/")


async def get(rest: RestClient, path: str, **query: str) -> dict[str, Any]:
    response = await rest.request("GET", url(path), params=query)
    model: dict[str, Any] = response.json()
    assert set(model) - {"message"} == MODEL_KEYS
    return model


async def put(rest: RestClient, path: str, status: int = 200, **body: Any) -> httpx.Response:
    return await rest.request("PUT", url(path), status, json=body)


async def put_text(
    rest: RestClient, path: str, text: str, status: int = 200, headers: dict[str, str] | None = None
) -> httpx.Response:
    body = {"type": "file", "format": "text", "content": text}
    return await rest.request("PUT", url(path), status, json=body, headers=headers)


async def refused(
    rest: RestClient, method: str, path: str, status: int, code: str, **more: Any
) -> str:
    return error_of(await rest.http.request(method, url(path), **more), status, code)


async def test_a_text_goes_and_comes_back(rest: RestClient, root: Path) -> None:
    text = "zwölf\r\nЖ\n\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16")
    made = await put_text(rest, "größe x.txt", text, 201)
    assert made.headers["Location"] == "/api/contents/gr%C3%B6%C3%9Fe%20x.txt"
    assert (made.json()["content"], made.json()["format"]) == (None, None)
    assert (root / "größe x.txt").read_bytes() == text.encode()
    model = await get(rest, "größe x.txt", hash="1")
    assert (model["content"], model["format"], model["mimetype"]) == (text, "text", "text/plain")
    assert (model["type"], model["size"], model["writable"]) == ("file", len(text.encode()), True)
    assert (len(model["hash"]), model["hash_algorithm"]) == (64, "sha256")
    again = await put_text(rest, "größe x.txt", "", 200)
    assert again.json()["size"] == 0


async def test_bytes_go_and_come_back(rest: RestClient, root: Path) -> None:
    data = bytes(range(256)) * 5
    content = b64encode(data).decode()
    await put(rest, "a.bin", 201, type="file", format="base64", content=content)
    assert (root / "a.bin").read_bytes() == data
    model = await get(rest, "a.bin")
    assert model["format"] == "base64"
    assert b64encode(data).decode() == "".join(model["content"].split())


async def test_a_notebook_is_checked_and_old_ones_are_read(rest: RestClient, root: Path) -> None:
    await put(rest, "n.ipynb", 201, type="notebook", content=NOTEBOOK)
    model = await get(rest, "n.ipynb")
    assert (model["type"], model["format"], model["mimetype"]) == ("notebook", "json", None)
    assert model["content"]["cells"][0]["source"] == "1 + 1"
    assert "message" not in model
    bad = {**NOTEBOOK, "cells": [{"cell_type": "odd", "metadata": {}}]}
    saved = await put(rest, "bad.ipynb", 201, type="notebook", content=bad)
    assert saved.json()["message"].startswith("Notebook validation failed: ")
    old = {"nbformat": 3, "nbformat_minor": 0, "metadata": {"name": ""}, "worksheets": []}
    (root / "old.ipynb").write_text(json.dumps(old))
    assert (await get(rest, "old.ipynb"))["content"]["nbformat"] == 4
    as_text = await get(rest, "n.ipynb", type="file", format="text")
    assert json.loads(as_text["content"])["cells"][0]["source"] == ["1 + 1"]


async def test_outputs_are_trusted_when_somebody_says_so(rest: RestClient, root: Path) -> None:
    output = {"output_type": "display_data", "data": {"text/html": "<b>"}, "metadata": {}}
    cell = {**CELL, "execution_count": 1, "outputs": [output]}
    (root / "n.ipynb").write_text(json.dumps({**NOTEBOOK, "cells": [cell]}))
    model = await get(rest, "n.ipynb")
    assert model["content"]["cells"][0]["metadata"] == {"trusted": False}
    await rest.request("POST", url("n.ipynb/trust"), 201)
    model = await get(rest, "n.ipynb")
    assert model["content"]["cells"][0]["metadata"] == {"trusted": True}
    # What is saved as it was trusted stays so, and nothing of it is in the file.
    await put(rest, "n.ipynb", type="notebook", content=model["content"])
    assert "trusted" not in (root / "n.ipynb").read_text()
    model = await get(rest, "n.ipynb")
    assert model["content"]["cells"][0]["metadata"] == {"trusted": True}


async def test_a_directory_shows_what_may_be_seen(rest: RestClient, root: Path) -> None:
    for name in ("b.txt", "a.ipynb", ".hidden", "x.pyc", "x~"):
        (root / name).touch()
    (root / "sub").mkdir()
    (root / "sub" / "inner.txt").touch()
    os.mkfifo(root / "pipe")
    (root / "within").symlink_to(root / "sub")
    (root / "without").symlink_to(root.parent)
    (root / "nowhere").symlink_to(root / "nothing")
    (root / "to-hidden").symlink_to(root / ".hidden")
    (root / os.fsdecode(b"\xff")).touch()
    model = await get(rest, "")
    assert (model["name"], model["path"], model["type"]) == ("", "", "directory")
    found = {child["name"]: child["type"] for child in model["content"]}
    assert found == {
        "a.ipynb": "notebook",
        "b.txt": "file",
        "sub": "directory",
        "within": "directory",
    }
    assert all(child["content"] is None for child in model["content"])
    assert [child["path"] for child in (await get(rest, "within"))["content"]] == [
        "within/inner.txt"
    ]
    assert (await get(rest, "", content="0"))["content"] is None
    assert (await rest.request("GET", "/api/contents/")).json() == model


OUTSIDE = (
    *(".hidden", ".hidden/x", "sub/.x", "without/state", "without", "../state", "sub/../../state"),
    *("%2e%2e/state", "sub/%2e%2e/%2e%2e/state", "pipe/x", "to-hidden", "loop", "x%00y"),
)


@pytest.mark.parametrize("path", OUTSIDE)
def test_what_is_hidden_or_outside_is_not_there(
    server: ServerProcess, root: Path, path: str
) -> None:
    (root / ".hidden").mkdir()
    (root / "sub").mkdir()
    (root / "without").symlink_to(root.parent)
    (root / "to-hidden").symlink_to(root / ".hidden")
    (root / "loop").symlink_to(root / "loop")
    os.mkfifo(root / "pipe")
    before = names_in(root.parent)

    def ask(method: str, target: str, body: object = None) -> tuple[int, str]:
        # With the standard library: httpx would go up the dots by itself.
        connection = HTTPConnection("127.0.0.1", server.port, timeout=30)
        headers = {"Authorization": f"token {server.token}"}
        connection.request(method, target, json.dumps(body) if body else None, headers)
        with closing(connection), connection.getresponse() as response:
            return response.status, json.loads(response.read())["code"]

    assert ask("GET", f"/files/{path}") == (404, "contents_not_found")
    assert ask("GET", f"/api/contents/{path}") == (404, "contents_not_found")
    text = {"type": "file", "format": "text", "content": ""}
    for method, target, body in (
        ("PUT", path, text),
        ("PATCH", path, {"path": "new"}),
        ("DELETE", path, None),
        ("POST", "sub", {"copy_from": unquote(path)}),
    ):
        assert ask(method, f"/api/contents/{target}", body) in (
            (400, "invalid_contents"),
            (404, "contents_not_found"),
        )
    assert names_in(root.parent) == before
    assert names_in(root / "sub") == []


async def test_a_state_directory_below_the_root_is_not_shown(
    make_server: MakeServer, home: Home
) -> None:
    state = home.root_dir / "own"
    state.mkdir(mode=0o700)
    home.state_dir = state
    server = make_server(home=home)
    async with RestClient(server.url, server.token) as rest:
        assert (await get(rest, ""))["content"] == []
        await refused(rest, "GET", "own", 404, "contents_not_found")


BAD_BODIES: dict[str, tuple[Any, int, str]] = {
    "no content": ({"type": "file", "format": "text"}, 400, "invalid_contents"),
    "no type": ({"format": "text", "content": ""}, 400, "invalid_contents"),
    "no format": ({"type": "file", "content": ""}, 400, "invalid_contents"),
    "bad base64": ({"type": "file", "format": "base64", "content": "*"}, 400, "invalid_contents"),
    "a list": ({"type": "file", "format": "text", "content": []}, 400, "invalid_contents"),
    "no notebook": ({"type": "notebook", "content": "x"}, 400, "invalid_contents"),
    "no format of a notebook": (
        {"type": "notebook", "content": {"cells": [], "metadata": {}}},
        *(400, "invalid_contents"),
    ),
    "a number for a type": ({"type": 7}, 400, "invalid_request"),
    "a list for a body": ([], 400, "invalid_request"),
    "a copy": ({"copy_from": "old.txt"}, 400, "invalid_contents"),
    "hidden path": (
        {"type": "file", "format": "text", "content": "", "path": ".x"},
        *(400, "invalid_contents"),
    ),
    "second chunk first": (
        {"type": "file", "format": "text", "content": "", "chunk": 2},
        *(400, "invalid_contents"),
    ),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_body_that_cannot_be_saved(rest: RestClient, root: Path, name: str) -> None:
    (root / "old.txt").write_text("old")
    body, status, code = BAD_BODIES[name]
    await refused(rest, "PUT", "old.txt", status, code, json=body)
    assert (root / "old.txt").read_text() == "old"
    assert names_in(root) == ["old.txt"]


@pytest.mark.parametrize(
    "content", [b"{", b"\xff", b'{"content": "\\ud800"}', b'{"content":' + b"[" * 100_000]
)
async def test_a_body_that_is_no_json(rest: RestClient, root: Path, content: bytes) -> None:
    await refused(rest, "PUT", "x.txt", 400, "invalid_json", content=content)


async def test_names_that_are_too_long(rest: RestClient, root: Path) -> None:
    longest = "x" * 255
    await put_text(rest, longest, "", 201)
    assert (await get(rest, longest))["name"] == longest
    text = {"type": "file", "format": "text", "content": ""}
    for path in ("x" * 256, "/".join(["y" * 200] * 30)):
        await refused(rest, "PUT", path, 400, "invalid_contents", json=text)
        await refused(rest, "PATCH", longest, 400, "invalid_contents", json={"path": path})
    await refused(rest, "PUT", "no/dir.txt", 404, "contents_not_found", json=text)


async def test_what_it_is_taken_for(rest: RestClient, root: Path) -> None:
    (root / "sub").mkdir()
    (root / "a.txt").write_bytes(b"\xff")
    (root / "n.ipynb").write_text("no notebook")

    async def complaint(path: str, **query: str) -> tuple[str, str | None]:
        response = await rest.http.get(url(path), params=query)
        assert (response.status_code, response.json()["code"]) == (400, "invalid_contents")
        return response.json()["message"], response.json()["reason"]

    assert await complaint("sub", type="file") == ("sub is a directory, not a file", "bad type")
    assert await complaint("a.txt", type="directory") == ("a.txt is not a directory", "bad type")
    assert await complaint("a.txt", type="notebook") == ("a.txt is not a notebook", "bad type")
    assert await complaint("a.txt", format="text") == ("a.txt is not UTF-8 encoded", "bad format")
    assert (await complaint("n.ipynb"))[0].startswith("Unreadable notebook: n.ipynb: ")
    for query in ({"format": "json"}, {"content": "2"}, {"hash": "yes"}):
        await refused(rest, "GET", "a.txt", 400, "invalid_request", params=query)


async def test_new_things_get_free_names(rest: RestClient, root: Path) -> None:
    async def new(path: str = "", **body: str) -> str:
        more = {"json": body} if body else {}
        response = await rest.request("POST", f"/api/contents/{path}", 201, **more)
        return str(response.json()["path"])

    assert [await new(type="notebook") for _ in range(2)] == ["Untitled.ipynb", "Untitled1.ipynb"]
    assert [await new(ext=".txt") for _ in range(2)] == ["untitled.txt", "untitled1.txt"]
    assert [await new(type="directory") for _ in range(2)] == [
        "Untitled Folder",
        "Untitled Folder 1",
    ]
    assert await new() == "untitled"
    assert await new(path="Untitled Folder", type="file", ext=".tar.gz") == (
        "Untitled Folder/untitled.tar.gz"
    )
    assert (await get(rest, "Untitled.ipynb"))["content"]["cells"] == []
    await refused(rest, "POST", "untitled", 400, "invalid_contents")
    await refused(rest, "POST", "nowhere", 404, "contents_not_found")
    await refused(rest, "POST", "", 400, "invalid_contents", json={"ext": "/../x"})
    many = await asyncio.gather(*(new(ext=".many") for _ in range(20)))
    assert len({*many}) == 20


async def test_copies(rest: RestClient, root: Path) -> None:
    (root / "sub").mkdir()
    (root / "sub" / ".git").mkdir()
    (root / "sub" / "again").symlink_to(root)
    (root / "sub" / "x.txt").write_text("x")
    (root / "a.b.ipynb").write_text("{}")
    (root / "a.tar.gz").write_text("packed")

    async def copy(source: str, path: str) -> str:
        response = await rest.request("POST", url(path), 201, json={"copy_from": source})
        return str(response.json()["path"])

    assert await copy("a.b.ipynb", "") == "a.b-Copy1.ipynb"
    assert await copy("a.b-Copy1.ipynb", "") == "a.b-Copy2.ipynb"
    assert await copy("a.tar.gz", "sub") == "sub/a.tar.gz"
    assert await copy("a.tar.gz", "sub") == "sub/a-Copy1.tar.gz"
    (root / "sub" / "again").unlink()
    assert await copy("sub", "other") == "other/sub"
    names = sorted(path.name for path in (root / "other" / "sub").iterdir())
    assert names == ["a-Copy1.tar.gz", "a.tar.gz", "x.txt"]
    await refused(rest, "POST", "sub", 400, "invalid_contents", json={"copy_from": "sub"})
    await refused(rest, "POST", "", 404, "contents_not_found", json={"copy_from": "nothing"})


async def test_a_directory_whose_links_lead_to_itself_is_not_copied(
    rest: RestClient, root: Path
) -> None:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "up").symlink_to(root / "a")
    await refused(rest, "POST", "", 400, "invalid_contents", json={"copy_from": "a"})
    assert names_in(root) == ["a"]


async def test_renaming(rest: RestClient, root: Path) -> None:
    (root / "sub").mkdir()
    (root / "a.txt").write_text("a")
    (root / "b.txt").write_text("b")
    (root / "link").symlink_to(root / "b.txt")
    await rest.request("POST", url("a.txt/checkpoints"), 201)
    response = await rest.request("PATCH", url("a.txt"), json={"path": "sub/c.txt"})
    assert response.headers["Location"] == "/api/contents/sub/c.txt"
    assert response.json()["path"] == "sub/c.txt"
    assert len((await rest.request("GET", url("sub/c.txt/checkpoints"))).json()) == 1
    await rest.request("PATCH", url("link"), json={"path": "moved"})
    assert (root / "moved").is_symlink()
    for path, to, status, code in (
        ("b.txt", "sub/c.txt", 409, "contents_exist"),
        ("b.txt", "nowhere/x", 404, "contents_not_found"),
        ("nothing", "x", 404, "contents_not_found"),
        ("sub", "sub/sub", 400, "invalid_contents"),
        ("", "x", 400, "invalid_contents"),
        ("b.txt", ".x", 400, "invalid_contents"),
    ):
        await refused(rest, "PATCH", path, status, code, json={"path": to})
    await refused(rest, "PATCH", "b.txt", 400, "invalid_request", json={})
    await refused(rest, "PATCH", "b.txt", 400, "invalid_request")


async def test_a_link_that_leads_nowhere_stays_where_it_is(rest: RestClient, root: Path) -> None:
    """It was moved, and the answer said that there is no such file."""
    (root / "sub").mkdir()
    (root / "sub" / "file").touch()
    (root / "sub" / "near").symlink_to("file")
    (root / "sub" / "nowhere").symlink_to("nothing")
    for name, status, code in (
        ("near", 400, "invalid_contents"),
        ("nowhere", 404, "contents_not_found"),
    ):
        await refused(rest, "PATCH", f"sub/{name}", status, code, json={"path": "moved"})
        assert (root / "sub" / name).is_symlink()
        assert not (root / "moved").is_symlink()
    await rest.request("PATCH", url("sub/near"), json={"path": "sub/moved"})
    assert (root / "sub" / "moved").resolve() == root / "sub" / "file"


async def test_deleting(rest: RestClient, root: Path) -> None:
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "sub" / "deep" / "x").touch()
    (root / "target").write_text("stays")
    (root / "link").symlink_to(root / "target")
    (root / "tree").symlink_to(root / "sub")
    (root / "kept" / ".git").mkdir(parents=True)
    await rest.request("DELETE", url("link"), 204)
    await rest.request("DELETE", url("tree"), 204)
    assert (root / "target").read_text() == "stays"
    assert (root / "sub" / "deep" / "x").exists()
    await rest.request("DELETE", url("sub"), 204)
    assert not (root / "sub").exists()
    await refused(rest, "DELETE", "kept", 400, "invalid_contents")
    assert (root / "kept" / ".git").is_dir()
    await refused(rest, "DELETE", "", 400, "invalid_contents")
    await refused(rest, "DELETE", "sub", 404, "contents_not_found")


async def test_checkpoints(rest: RestClient, root: Path) -> None:
    await put_text(rest, "a.txt", "one", 201)
    made = await rest.request("POST", url("a.txt/checkpoints"), 201)
    assert made.headers["Location"] == "/api/contents/a.txt/checkpoints/checkpoint"
    await put_text(rest, "a.txt", "two")
    assert (await rest.request("GET", url("a.txt/checkpoints"))).json() == [made.json()]
    await rest.request("POST", url("a.txt/checkpoints/checkpoint"), 204)
    assert (root / "a.txt").read_text() == "one"
    await rest.request("DELETE", url("a.txt/checkpoints/checkpoint"), 204)
    assert (await rest.request("GET", url("a.txt/checkpoints"))).json() == []
    for method in ("POST", "DELETE"):
        for name in ("checkpoint", "other"):
            path = f"a.txt/checkpoints/{name}"
            await refused(rest, method, path, 404, "contents_not_found")
    (root / ".ipynb_checkpoints").rmdir()
    (root / ".ipynb_checkpoints").symlink_to(root.parent / "state")
    await refused(rest, "POST", "a.txt/checkpoints", 403, "contents_forbidden")


async def test_a_file_in_chunks(rest: RestClient, root: Path) -> None:
    async def chunk(number: int, text: str, status: int = 201) -> dict[str, Any]:
        response = await put(
            rest, "big.txt", status, type="file", format="text", content=text, chunk=number
        )
        model: dict[str, Any] = response.json()
        return model

    await chunk(1, "lost")
    assert (await chunk(1, "a"))["size"] == 1
    assert (await chunk(2, "b"))["size"] == 2
    assert (await get(rest, ""))["content"] == []
    assert (await chunk(-1, "c"))["size"] == 3
    assert (await get(rest, "big.txt"))["content"] == "abc"
    await chunk(1, "x", 200)
    await refused(
        *(rest, "PUT", "big.txt", 400, "invalid_contents"),
        json={"type": "file", "format": "text", "content": "", "chunk": 3},
    )
    await chunk(-1, "y", 200)
    assert names_in(root) == ["big.txt"]


@pytest.mark.parametrize("kind", ["directory", "notebook"])
async def test_only_files_come_in_chunks(rest: RestClient, root: Path, kind: str) -> None:
    """A directory was made, and the audit log said nothing of a chunk that is not the last."""
    await refused(rest, "PUT", "a", 400, "invalid_contents", json={"type": kind, "chunk": 1})
    assert names_in(root) == []


async def test_a_chunk_before_the_last_has_no_version_to_rely_on(
    rest: RestClient, root: Path
) -> None:
    seen = (await put_text(rest, "a.txt", "0", 201)).headers["ETag"]
    body = {"type": "file", "format": "text", "content": "1"}
    first = await put(rest, "a.txt", 200, **body, chunk=1)
    assert "ETag" not in first.headers
    last = await rest.http.put(url("a.txt"), json={**body, "chunk": -1}, headers={"If-Match": seen})
    assert last.status_code == 200
    assert last.headers["ETag"] == (await rest.request("GET", url("a.txt"))).headers["ETag"]
    assert (root / "a.txt").read_text() == "11"
    await rest.request("DELETE", url("a.txt"), 204)


async def test_only_one_of_two_writers_wins(rest: RestClient, root: Path) -> None:
    seen = (await put_text(rest, "a.txt", "0", 201)).headers["ETag"]
    assert (await rest.request("GET", url("a.txt"))).headers["ETag"] == seen
    body = {"type": "file", "format": "text"}
    answers = await asyncio.gather(
        *(
            rest.http.put(
                url("a.txt"), json={**body, "content": str(number)}, headers={"If-Match": seen}
            )
            for number in range(20)
        )
    )
    statuses = [answer.status_code for answer in answers]
    assert sorted(statuses) == [200, *[412] * 19]
    winner = statuses.index(200)
    assert (root / "a.txt").read_text() == str(winner)
    stale = {"headers": {"If-Match": seen}}
    await refused(rest, "DELETE", "a.txt", 412, "version_mismatch", **stale)
    await refused(rest, "PATCH", "a.txt", 412, "version_mismatch", json={"path": "b"}, **stale)
    fresh = answers[winner].headers["ETag"]
    await rest.request("GET", url("a.txt"), 304, headers={"If-None-Match": fresh})
    await rest.request("DELETE", url("a.txt"), 204, headers={"If-Match": f'"x", {fresh}'})
    await refused(rest, "DELETE", "a.txt", 412, "version_mismatch", headers={"If-Match": "*"})
    new = {"If-None-Match": "*"}
    await put_text(rest, "a.txt", "new", 201, headers=new)
    refusal = await rest.http.put(url("a.txt"), json={**body, "content": ""}, headers=new)
    error_of(refusal, 412, "version_mismatch")


async def test_a_write_that_fails_leaves_the_old_file(rest: RestClient, root: Path) -> None:
    (root / "a.txt").write_text("old")
    (root / "a.txt").chmod(0o640)
    await put_text(rest, "a.txt", "new")
    assert (root / "a.txt").stat().st_mode & 0o777 == 0o640
    (root / "link").symlink_to("a.txt")
    await put_text(rest, "link", "through")
    assert (root / "link").is_symlink()
    assert (root / "a.txt").read_text() == "through"


# -- files as they are


async def test_ranges(rest: RestClient, root: Path) -> None:
    (root / "a.bin").write_bytes(bytes(range(100)))

    async def fetch(header: str, status: int = 206, **headers: str) -> httpx.Response:
        return await rest.request(
            "GET", "/files/a.bin", status, headers={"Range": header, **headers}
        )

    for header, first, last in (
        ("bytes=0-0", 0, 0),
        ("bytes=10-19", 10, 19),
        ("bytes=90-", 90, 99),
        ("bytes=-5", 95, 99),
        ("bytes=-500", 0, 99),
        ("bytes=98-1000", 98, 99),
    ):
        response = await fetch(header)
        assert response.content == bytes(range(first, last + 1))
        assert response.headers["Content-Range"] == f"bytes {first}-{last}/100"
    for header in ("bytes=-", "bytes=5-3", "bytes=1-2,4-5", "lines=1-2", "bytes=x"):
        assert len((await fetch(header, 200)).content) == 100
    for header in ("bytes=100-", "bytes=-0", f"bytes={'9' * 30}-"):
        error_of(await fetch(header, 416), 416, "range_not_satisfiable")
    whole = await rest.request("GET", "/files/a.bin")
    assert whole.headers["Content-Type"] == "application/octet-stream"
    assert whole.headers["Content-Security-Policy"].endswith("; sandbox")
    etag = whole.headers["ETag"]
    assert len((await fetch("bytes=0-0", 206, **{"If-Range": etag})).content) == 1
    assert len((await fetch("bytes=0-0", 200, **{"If-Range": '"old"'})).content) == 100
    await rest.request("GET", "/files/a.bin", 304, headers={"If-None-Match": etag})
    head = await rest.request("HEAD", "/files/a.bin")
    assert (head.headers["Content-Length"], head.content) == ("100", b"")


async def test_a_file_is_saved_under_its_name(rest: RestClient, root: Path) -> None:
    (root / 'zwölf "x".txt').touch()
    path = "/files/" + quote('zwölf "x".txt')
    response = await rest.request("GET", path, params={"download": "1"})
    assert response.headers["Content-Disposition"] == (
        "attachment; filename*=UTF-8''zw%C3%B6lf%20%22x%22.txt"
    )
    assert response.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert response.content == b""
    (root / "sub").mkdir()
    refusal = await rest.http.get("/files/sub")
    assert (refusal.status_code, refusal.json()["code"]) == (400, "invalid_contents")


async def test_two_gigabytes(rest: RestClient, root: Path, server: ServerProcess) -> None:
    with (root / "big.txt").open("wb") as file:  # without a single block on the disk
        file.truncate(2**31 + 1)
    message = await refused(rest, "GET", "big.txt", 413, "contents_too_large")
    assert "/files/big.txt" in message
    assert (await get(rest, "big.txt", content="0"))["size"] == 2**31 + 1
    response = await rest.request(
        "GET", "/files/big.txt", 206, headers={"Range": f"bytes={2**31}-"}
    )
    assert response.content == b"\0"


async def test_a_file_that_changes_while_it_is_read(rest: RestClient, root: Path) -> None:
    size = 64 * 2**20
    with (root / "big").open("wb") as file:
        file.truncate(size)
    async with rest.http.stream("GET", "/files/big") as response:
        chunks = response.aiter_raw()
        await anext(chunks)
        with (root / "big").open("r+b") as file:
            file.truncate(10)
        with pytest.raises(httpx.RemoteProtocolError):
            async for _ in chunks:
                pass
    with (root / "big").open("r+b") as file:
        file.truncate(size)
    received = 0
    async with rest.http.stream("GET", "/files/big") as response:
        async for chunk in response.aiter_raw():
            if not received:
                with (root / "big").open("ab") as file:
                    file.write(b"x" * 2**20)
            received += len(chunk)
    assert received == size
    await rest.request("GET", "/livez")


async def test_a_client_that_leaves_in_the_middle_costs_nothing(
    server: ServerProcess, rest: RestClient, root: Path
) -> None:
    with (root / "big").open("wb") as file:
        file.truncate(2**31)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"GET /files/big HTTP/1.1\r\nHost: localhost\r\nAuthorization: token {server.token}"
        connection.sendall(f"{head}\r\n\r\n".encode())
        assert connection.recv(100)

    def is_open(descriptor: Path) -> bool:
        try:
            return os.readlink(descriptor).endswith("/big")
        except FileNotFoundError:  # closed since it was listed
            return False

    def is_closed() -> bool:
        return not any(map(is_open, Path(f"/proc/{server.pid}/fd").iterdir()))

    await eventually(is_closed)


async def test_it_can_be_switched_off(make_server: MakeServer) -> None:
    server = make_server("--no-allow-contents")
    (server.home.root_dir / "a.txt").touch()
    async with RestClient(server.url, server.token) as rest:
        for path in ("/api/contents", "/api/contents/a.txt", "/files/a.txt"):
            error_of(await rest.http.get(path), 404, "not_found")


async def test_nothing_without_a_token(server: ServerProcess, root: Path) -> None:
    (root / "a.txt").write_text("secret")
    async with RestClient(server.url, None) as stranger:
        for path in ("/api/contents", "/api/contents/a.txt", "/files/a.txt"):
            error_of(await stranger.http.get(path), 403, "unauthorized")
