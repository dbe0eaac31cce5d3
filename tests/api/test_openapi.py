"""The OpenAPI document, from which clients are generated.

These are the tests of `app.api.websocket_models`; those of responses are in `test_responses`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from websockets.asyncio.client import connect

from app import __version__
from app.main import create_app
from app.managers.errors import KernelkeepError, NotFound
from app.managers.limits.errors import LimitReached
from app.settings import Settings
from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.rest import RestClient
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess

JSON = "application/json"
TIMEOUT = 30  # seconds
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
        "GET /files/{path}",
        "GET /kernelspecs/{name}/{path}",
        "GET /api/kernels/{kernel_id}/executions/{execution_id}/events",
        "GET /api/kernels/{kernel_id}/executions/{execution_id}/outputs/{number}",
        "GET /api/kernels/{kernel_id}/process_output",
        "GET /metrics",
    }


def _is_typed(schema: dict[str, Any]) -> bool:
    choices = schema.get("anyOf", []) + schema.get("oneOf", [])
    return (
        "$ref" in schema
        or (schema.get("type") == "array" and _is_typed(schema["items"]))
        or (bool(choices) and all(_is_typed(choice) for choice in choices))
    )


PUBLIC = {"GET /api", "GET /api/login", "POST /api/login"}


def test_every_error_has_the_one_model(document: dict[str, Any]) -> None:
    for name, operation in _operations(document):
        errors = {
            status: response
            for status, response in operation["responses"].items()
            if not status.startswith("2")
        }
        assert {"403", "404", "500", "default"} <= set(errors), name
        # FastAPI's own, which this service never sends.
        assert "422" not in errors, name
        for response in errors.values():
            assert response["content"][JSON]["schema"] == ERROR, name
    schemas = document["components"]["schemas"]
    assert schemas["ErrorModel"]["required"] == ["message", "reason", "code"]
    assert not [name for name in schemas if "ValidationError" in name]


def test_it_names_every_code_that_a_caller_can_meet(document: dict[str, Any]) -> None:
    told = "".join(
        response.get("description", "")
        for _, operation in _operations(document)
        for response in operation["responses"].values()
    )
    told += "".join(socket["refusals"]["429"] for socket in document["x-websockets"].values())
    kinds = {*_errors(KernelkeepError)} - {NotFound, LimitReached}
    known = [kind.code for kind in kinds]
    assert [code for code in known if f"`{code}`" not in told] == []


def _errors(base: type[KernelkeepError]) -> Iterator[type[KernelkeepError]]:
    for kind in base.__subclasses__():
        yield kind
        yield from _errors(kind)


def test_it_asks_for_the_token_where_the_server_does(document: dict[str, Any]) -> None:
    schemes = document["components"]["securitySchemes"]
    for name, operation in _operations(document):
        asked = {scheme for choice in operation["security"] for scheme in choice}
        assert asked == (set() if name in PUBLIC else set(schemes)), name


def test_it_tells_the_prefix_below_which_a_proxy_shows_the_service(
    document: dict[str, Any],
) -> None:
    assert "servers" not in document
    prefixed = create_app(Settings.model_construct(root_path="/lab")).openapi()
    assert prefixed["servers"] == [{"url": "/lab"}]


def test_its_examples_are_as_their_schemas_say(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    shown = [name for name, schema in schemas.items() if "examples" in schema]
    assert {"ErrorModel", "KernelModel", "RunCode", "ExecutionResultModel"} <= set(shown)
    for name in shown:
        for example in schemas[name]["examples"]:
            _validator(document, name).validate(example)


def _validator(document: dict[str, Any], name: str) -> Draft202012Validator:
    components = {"components": document["components"]}
    return Draft202012Validator({"$ref": f"#/components/schemas/{name}", **components})


@pytest.mark.parametrize("parameters", ["", "&after=0"])
async def test_messages_of_the_channels_are_as_it_says(
    document: dict[str, Any],
    server: ServerProcess,
    start: KernelStarter,
    parameters: str,
) -> None:
    kernel = await start("fake")
    path = f"/api/kernels/{kernel.id}/channels?token={server.token}{parameters}"
    validator = _validator(document, "ChannelsMessageModel")
    header = {"msg_type": "execute_request", "msg_id": "1", "session": "s"}
    request = {"channel": "shell", "header": header, "content": {"code": "print here"}}
    types = []
    async with connect(server.ws_url + path, proxy=None) as websocket, asyncio.timeout(TIMEOUT):
        await websocket.send(json.dumps({**request, "parent_header": {}, "metadata": {}}))
        while "execute_reply" not in types:
            message = json.loads(await websocket.recv())
            validator.validate(message)
            types.append(message["msg_type"])
    assert {"status", "stream"} <= set(types)
    assert set(document["x-websockets"]) == {
        "/api/kernels/{kernel_id}/channels",
        "/api/events/subscribe",
    }


async def test_it_needs_the_token(server: ServerProcess) -> None:
    async with RestClient(server.url, None) as stranger:
        for path in ("/openapi.json", "/docs", "/docs/swagger-ui.css"):
            error_of(await stranger.http.get(path), 403, "unauthorized")


async def test_it_can_be_opened_to_everybody(make_server: MakeServer) -> None:
    server = make_server("--open-docs", "--no-serve-page")
    async with RestClient(server.url, None) as stranger:
        for path in ("/openapi.json", "/docs", "/docs/swagger-ui-bundle.js"):
            await stranger.request("GET", path)
        assert (await stranger.request("GET", "/", 302)).headers["Location"] == "docs"
        for path in ("/api/kernels", "/api/status", "/docs/none-such"):
            error_of(await stranger.http.get(path), 403, "unauthorized")
