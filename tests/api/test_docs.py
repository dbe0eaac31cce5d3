"""The documentation's page: whole without internet, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import re

import pytest

from tests.conftest import MakeServer
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

ASSETS = {"swagger-ui-bundle.js": "text/javascript", "swagger-ui.css": "text/css"}


async def test_without_the_page_for_people_the_printed_address_leads_here(
    make_server: MakeServer,
) -> None:
    server = make_server("--no-serve-page")
    async with RestClient(server.url, server.token) as rest:
        response = await rest.request("GET", f"/?token={server.token}", 302)
        assert response.headers["Location"] == f"docs?token={server.token}"


async def test_the_page_asks_for_nothing_from_elsewhere(rest: RestClient) -> None:
    page = (await rest.request("GET", "/docs")).text
    assert "//" not in page.replace("<!doctype html>", "")
    assert set(re.findall(r"/(swagger-ui[\w.-]+)", page)) == set(ASSETS)
    assert "openapi.json" in page
    # Swagger UI asks a validator on the internet otherwise.
    assert "validatorUrl: null" in page


async def test_the_browser_is_told_to_load_nothing_from_elsewhere(rest: RestClient) -> None:
    response = await rest.request("GET", "/docs")
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    policy = response.headers["Content-Security-Policy"]
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert directives["default-src"] == "'none'"
    assert directives["frame-ancestors"] == "'self'"
    sources = {source for value in directives.values() for source in value.split()}
    hashes = {source for source in sources if source.startswith("'sha256-")}
    assert sources - hashes <= {"'none'", "'self'", "'unsafe-inline'", "data:"}
    assert "'unsafe-inline'" not in directives["script-src"]
    # Its one script is the one that the policy lets run.
    (script,) = re.findall(r"<script>(.*?)</script>", response.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert hashes == {f"'sha256-{digest}'"}
    # The page's address holds the token.
    assert response.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize(("name", "content_type"), ASSETS.items())
async def test_the_assets_come_from_the_server(
    server: ServerProcess, rest: RestClient, name: str, content_type: str
) -> None:
    del rest.http.headers["Authorization"]  # a page can give only the address to a script tag
    response = await rest.request("GET", f"/docs/{name}?token={server.token}")
    assert response.headers["Content-Type"].split(";")[0] == content_type
    assert len(response.content) > 100_000
    assert b"swagger-ui" in response.content
    await rest.request("GET", f"/docs/{name}", 403)
