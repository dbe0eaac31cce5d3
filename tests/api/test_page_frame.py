"""The document in which kernels' output runs has no part in the page."""

from __future__ import annotations

import httpx

from app.api.page_frame import FRAME_POLICY
from tests.conftest import MakeServer
from tests.support.rest import RestClient
from tests.support.server import ServerProcess


async def test_it_needs_no_token_and_has_a_policy_of_its_own(server: ServerProcess) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        answer = await client.get("/page/frame")
    assert answer.status_code == 200
    assert answer.headers["content-security-policy"] == FRAME_POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "x-frame-options" not in answer.headers


def test_its_policy_gives_it_neither_an_origin_nor_a_network() -> None:
    rules = dict(rule.strip().partition(" ")[::2] for rule in FRAME_POLICY.split(";"))
    assert rules["sandbox"] == "allow-scripts"
    assert rules["default-src"] == "'none'"
    assert rules["form-action"] == rules["base-uri"] == "'none'"
    allowed = {source for rule in rules.values() for source in rule.split()}
    assert not [source for source in allowed if "http" in source or "*" in source]
    assert "connect-src" not in rules


async def test_without_the_page_there_is_none(make_server: MakeServer) -> None:
    server = make_server("--no-serve-page")
    async with RestClient(server.url, server.token) as client:
        await client.request("GET", "/page/frame", 404)
