"""The audit log tells the truth of changes: under the names that count, and of what was done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import MakeServer
from tests.support.home import Home
from tests.support.identities import token
from tests.support.owners import MANY, end_share, kernel_of, share
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

Record = dict[str, Any]

COMPOSED, DECOMPOSED = "Zo\u00eb", "Zoe\u0308"


@pytest.fixture
def path(home: Home) -> Path:
    return home.path / "audit.jsonl"


@pytest.fixture
def server(make_server: MakeServer, home: Home, path: Path) -> ServerProcess:
    return make_server("--audit-log", str(path), *MANY, home=home)


async def told(path: Path, last: str) -> list[Record]:
    """The lines of the log, when there is one of the path ``last``."""

    def lines() -> list[Record]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    await eventually(lambda: any(line.get("path") == last for line in lines()))
    return lines()


async def test_a_grantee_is_named_as_the_share_is(server: ServerProcess, path: Path) -> None:
    """In Unicode's normal form C, whatever form the client sends."""
    async with RestClient(server.url, token("anna", ["user", "contents:write"])) as anna:
        kernel_id = await kernel_of(anna)
        shown = await share(anna, kernel_id, name=DECOMPOSED, access="read")
        await end_share(anna, kernel_id, name=DECOMPOSED)
        await anna.delete(kernel_id)
        await anna.request("PUT", "/api/contents/end", 201, json={"type": "directory"})
    assert shown["name"] == COMPOSED
    found = [line for line in await told(path, "end") if line["action"].startswith("share_")]
    assert [line["action"] for line in found] == ["share_created", "share_ended"]
    assert [line["with_name"] for line in found] == [COMPOSED] * 2


async def test_a_file_has_one_path_however_it_is_written(server: ServerProcess, path: Path) -> None:
    text = {"type": "file", "format": "text", "content": ""}
    async with RestClient(server.url, token("anna", ["contents:write"])) as anna:
        await anna.request("PUT", "/api/contents/sub", 201, json={"type": "directory"})
        await anna.request("PUT", "/api/contents/sub//a", 201, json=text)
        await anna.request("POST", "/api/contents//sub/", 201, json={"copy_from": "/sub//a"})
        await anna.request("PATCH", "/api/contents/sub//a/", json={"path": "//sub/b/"})
        await anna.request("DELETE", "/api/contents//sub//b", 204)
        await anna.request("PUT", "/api/contents/end", 201, json={"type": "directory"})
    _, *found, _ = await told(path, "end")
    names = ("action", "path", "copy_from", "new_path")
    assert [tuple(line[name] for name in names if name in line) for line in found] == [
        ("file_saved", "sub/a"),
        ("file_copied", "sub/a-Copy1", "sub/a"),
        ("file_renamed", "sub/a", "sub/b"),
        ("file_deleted", "sub/b"),
    ]


async def test_what_fails_when_something_was_done_is_not_told_as_refused(
    server: ServerProcess, home: Home, path: Path
) -> None:
    """The file is gone, and its checkpoint, which is behind a link, is not."""
    away = home.root_dir / "away"
    away.mkdir()
    (away / "x.txt").touch()
    (away / ".ipynb_checkpoints").symlink_to(home.path)
    async with RestClient(server.url, token("anna", ["contents:write", "sessions:read"])) as anna:
        refused = await anna.http.delete("/api/contents/away/x.txt")
        assert (refused.status_code, refused.json()["code"]) == (403, "contents_forbidden")
        assert not (away / "x.txt").exists()
        refused = await anna.http.delete("/api/sessions/a-session")
        assert refused.status_code == 403
        await anna.request("PUT", "/api/contents/end", 201, json={"type": "directory"})
    failed, refusal, _ = await told(path, "end")
    assert (failed["action"], failed["outcome"]) == ("file_deleted", "failed")
    assert (failed["path"], failed["error"]) == ("away/x.txt", "contents_forbidden")
    assert (refusal["outcome"], refusal["session_id"]) == ("refused", "a-session")
