"""``/api/spec.yaml``: the OpenAPI document once more, where Jupyter servers have theirs."""

from __future__ import annotations

import yaml

from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.rest import RestClient


async def test_it_is_the_openapi_document(rest: RestClient) -> None:
    response = await rest.request("GET", "/api/spec.yaml")
    assert response.headers["Content-Type"] == "text/x-yaml; charset=utf-8"
    assert yaml.safe_load(response.text) == (await rest.request("GET", "/openapi.json")).json()
    assert response.text.startswith("openapi: 3.1.0\n")


async def test_it_is_the_same_each_time(rest: RestClient) -> None:
    first, second = [await rest.request("GET", "/api/spec.yaml") for _ in range(2)]
    assert first.content == second.content
    assert first.headers["ETag"] == second.headers["ETag"]


async def test_it_needs_the_token(rest: RestClient) -> None:
    async with RestClient(str(rest.http.base_url), None) as stranger:
        error_of(await stranger.http.get("/api/spec.yaml"), 403, "unauthorized")


async def test_open_docs_opens_it(make_server: MakeServer) -> None:
    server = make_server("--open-docs")
    async with RestClient(server.url, None) as stranger:
        await stranger.request("GET", "/api/spec.yaml")
