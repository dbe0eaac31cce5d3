"""The commands of docs/owners.md that make a list of tokens, run as they stand."""

from __future__ import annotations

import asyncio
import sysconfig
from pathlib import Path

from tests.conftest import MakeServer
from tests.docs.test_curl_commands import run
from tests.support.documented import block
from tests.support.rest import RestClient
from tests.support.server import REPOSITORY

PAGE = REPOSITORY / "docs" / "owners.md"


async def test_the_list_of_tokens_is_made_as_the_document_says(
    make_server: MakeServer, tmp_path: Path
) -> None:
    server = await asyncio.to_thread(make_server, "--files-by-owner")
    env = {
        "PATH": f"{sysconfig.get_path('scripts')}:/usr/local/bin:/usr/bin:/bin",
        "KERNELKEEP_STATE_DIR": str(server.home.state_dir),
        "HOME": str(tmp_path),
    }
    commands = block("sh", "TOKEN=$(kernelkeep tokens create anna", PAGE)
    # The variable has one token after the other: each is noted where it is made.
    noted = 'echo "$TOKEN" >> made'
    lines = [
        f"{line}\n{noted}\n" if line.startswith("TOKEN=") else f"{line}\n"
        for line in commands.splitlines()
    ]
    await run("".join(lines), tmp_path, env)
    anna, ben = (tmp_path / "made").read_text().split()
    async with RestClient(server.url, anna) as annas, RestClient(server.url, ben) as bens:
        kernel = await annas.start_kernel("fake")
        assert (await annas.request("GET", "/api/me")).json()["identity"]["username"] == "anna"
        assert (await annas.http.get("/api/contents")).status_code == 403
        assert await bens.kernels() == []
        assert (await bens.request("GET", "/api/contents")).json()["content"] == []
        await annas.delete(kernel["id"])
    async with RestClient(server.url, server.token) as admin:
        listed = (await admin.request("GET", "/api/tokens")).json()
        assert {(one["name"], one["owner"]) for one in listed} == {("anna", "anna"), ("ben", "ben")}
