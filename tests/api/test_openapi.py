"""The OpenAPI document, from which clients are generated."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from app import __version__
from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

JSON = "application/json"
ERROR = {"$ref": "#/components/schemas/ErrorModel"}


@pytest.fixture
async def document(rest: RestClient) -> dict[str, Any]:
    response = await rest.request("GET", "/openapi.json")
    assert response.headers["Content-Type"] == JSON
    found: dict[str, Any] = response.json()
    return found


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield f"{method.upper()} {path}", operation


def test_it_is_openapi_3_1(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    assert document["info"]["version"] == __version__
    OpenAPIV31SpecValidator(document).validate()


def test_it_has_the_kernels_service(document: dict[str, Any]) -> None:
    assert {
        "GET /api",
        "GET /api/status",
        "GET /api/kernelspecs",
        "GET /api/kernelspecs/{name}",
        "GET /kernelspecs/{name}/{path}",
        "GET /api/kernels",
        "POST /api/kernels",
        "GET /api/kernels/{kernel_id}",
        "DELETE /api/kernels/{kernel_id}",
        "POST /api/kernels/{kernel_id}/interrupt",
        "POST /api/kernels/{kernel_id}/restart",
    } <= {name for name, _ in _operations(document)}


def test_every_operation_has_an_id_of_its_own(document: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, operation in _operations(document)]
    assert len(set(ids)) == len(ids)
    assert all(name.isidentifier() for name in ids)
    assert "kernels_start" in ids


def test_every_operation_says_what_it_returns(document: dict[str, Any]) -> None:
    for name, operation in _operations(document):
        assert operation["description"], name
        successes = {
            status: response.get("content", {})
            for status, response in operation["responses"].items()
            if status.startswith("2")
        }
        assert successes, name
        for status, content in successes.items():
            assert bool(content) is (status != "204"), name
            assert JSON not in content or _is_typed(content[JSON]["schema"]), name


def test_all_but_files_and_streams_is_json(document: dict[str, Any]) -> None:
    others = {
        name
        for name, operation in _operations(document)
        if JSON not in operation["responses"].get("200", {"content": JSON})["content"]
    }
    assert others <= {
        "GET /kernelspecs/{name}/{path}",
        "GET /api/kernels/{kernel_id}/executions/{execution_id}/events",
        "GET /api/kernels/{kernel_id}/executions/{execution_id}/outputs/{number}",
        "GET /metrics",
    }


def _is_typed(schema: dict[str, Any]) -> bool:
    choices = schema.get("anyOf", []) + schema.get("oneOf", [])
    return (
        "$ref" in schema
        or (schema.get("type") == "array" and _is_typed(schema["items"]))
        or (bool(choices) and all(_is_typed(choice) for choice in choices))
    )


def test_every_error_has_the_one_model(document: dict[str, Any]) -> None:
    for name, operation in _operations(document):
        errors = {
            status: response
            for status, response in operation["responses"].items()
            if not status.startswith("2")
        }
        assert {"403", "default"} <= set(errors), name
        # FastAPI's own, which this service never sends.
        assert "422" not in errors, name
        for response in errors.values():
            assert response["content"][JSON]["schema"] == ERROR, name
    schemas = document["components"]["schemas"]
    assert schemas["ErrorModel"]["required"] == ["message", "reason", "code"]
    assert not [name for name in schemas if "ValidationError" in name]


async def test_it_needs_the_token(server: ServerProcess) -> None:
    async with RestClient(server.url, None) as stranger:
        for path in ("/openapi.json", "/docs", "/docs/swagger-ui.css", "/"):
            error_of(await stranger.http.get(path), 403, "unauthorized")


async def test_it_can_be_opened_to_everybody(make_server: MakeServer) -> None:
    server = make_server("--open-docs")
    async with RestClient(server.url, None) as stranger:
        for path in ("/openapi.json", "/docs", "/docs/swagger-ui-bundle.js"):
            await stranger.request("GET", path)
        assert (await stranger.request("GET", "/", 302)).headers["Location"].endswith("/docs")
        for path in ("/api/kernels", "/api/status", "/docs/none-such"):
            error_of(await stranger.http.get(path), 403, "unauthorized")
