"""Posting events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.managers.telemetry.events import CORE_EVENT_SCHEMA_PATHS
from tests.api.errors import error_of
from tests.conftest import MakeServer, servers
from tests.support.commands import Commands
from tests.support.events import ACTIONS, LIFECYCLE, listening
from tests.support.home import Home
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

POSTED = "urn:example:actions"
DATA = {"action": "start", "msg": "posted", "kernel_id": "k"}
BODY = {"schema_id": POSTED, "version": "1", "data": DATA}
BAD_TIMESTAMP = (
    "Failed to parse timestamp from JSON request body, an ISO format datetime string "
    "with UTC offset is expected, for example, 2022-05-26T13:50:00+05:00Z"
)


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server with a schema that clients may post events of."""
    file = tmp_path_factory.mktemp("schemas") / "actions.yaml"
    own = next(text for text in map(Path.read_text, CORE_EVENT_SCHEMA_PATHS) if ACTIONS in text)
    file.write_text(own.replace(ACTIONS, POSTED))
    with servers(request.config) as make_server:
        yield make_server("--extra-event-schema-paths", str(file))


@pytest.mark.parametrize("schema_id", [ACTIONS, LIFECYCLE])
async def test_the_servers_own_schemas_are_not_for_clients(
    rest: RestClient, schema_id: str
) -> None:
    for more in ({}, {"timestamp": "2022-05-26T13:50:00+05:00Z"}):
        body = {**BODY, "schema_id": schema_id, **more}
        error_of(await post(rest, body), 403, "event_schema_reserved")


async def test_an_event_is_small(rest: RestClient) -> None:
    body = {**BODY, "data": {**DATA, "msg": "x" * 2**16}}
    error_of(await post(rest, body), 413, "request_too_large")


async def post(rest: RestClient, body: Any) -> httpx.Response:
    return await rest.http.post("/api/events", json=body)


def without(field: str) -> dict[str, Any]:
    return {name: value for name, value in BODY.items() if name != field}


@pytest.mark.parametrize(
    "body",
    [
        BODY,
        {**BODY, "version": 1},
        {**BODY, "timestamp": "2022-05-26T13:50:00+05:00Z"},
        {**BODY, "timestamp": "2022-05-26T13:50:00-0330Z"},
        {**BODY, "more": "is ignored"},
    ],
)
async def test_an_event_that_is_posted_is_told(
    server: ServerProcess, rest: RestClient, body: dict[str, Any]
) -> None:
    async with listening(server) as events:
        response = await post(rest, body)
        assert (response.status_code, response.content) == (204, b"")
        assert await events.recv() == {"schema_id": POSTED, **DATA}


async def test_the_type_of_the_content_does_not_matter(
    server: ServerProcess, rest: RestClient
) -> None:
    async with listening(server) as events:
        response = await rest.http.post(
            "/api/events", content=json.dumps(BODY), headers={"Content-Type": "text/plain"}
        )
        assert response.status_code == 204
        assert (await events.recv())["msg"] == "posted"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (without("schema_id"), "Missing `schema_id` in the JSON request body."),
        (without("version"), "Missing `version` in the JSON request body."),
        (without("data"), "Missing `data` in the JSON request body."),
        ({}, "Missing `schema_id` in the JSON request body."),
        (
            {**BODY, "schema_id": "urn:no:such"},
            "The requested schema, urn:no:such, was not found in the schema registry. "
            "Are you sure it was previously registered?",
        ),
        ({**BODY, "version": "2"}, f"Unregistered version: '2'≠'1' for `{POSTED}`"),
        ({**BODY, "version": 2}, f"Unregistered version: '2'≠'1' for `{POSTED}`"),
        ({**BODY, "timestamp": "2022-05-26 12:50:00"}, BAD_TIMESTAMP),
        ({**BODY, "timestamp": "2022-05-26T12:50:00Z"}, BAD_TIMESTAMP),
        ({**BODY, "timestamp": "2022-05-26T12:50:00+05:00"}, BAD_TIMESTAMP),
        ({**BODY, "timestamp": ""}, BAD_TIMESTAMP),
    ],
)
async def test_an_event_that_cannot_be_told_is_refused(
    rest: RestClient, body: Any, message: str
) -> None:
    assert error_of(await post(rest, body), 400, "invalid_event") == message


async def test_no_body_at_all_is_refused(rest: RestClient) -> None:
    response = await rest.http.post("/api/events")
    assert error_of(response, 400, "invalid_request") == "No JSON data provided"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ([], "body"),
        ("text", "body"),
        ({**BODY, "schema_id": 1}, "schema_id"),
        ({**BODY, "version": None}, "version"),
        ({**BODY, "data": []}, "data"),
        ({**BODY, "timestamp": 12}, "timestamp"),
    ],
)
async def test_a_body_of_the_wrong_shape_is_refused_by_the_field(
    rest: RestClient, body: Any, field: str
) -> None:
    assert error_of(await post(rest, body), 400, "invalid_request").startswith(field)


async def test_numbers_that_are_not_json_are_refused(rest: RestClient) -> None:
    content = json.dumps({**BODY, "data": {**DATA, "status_code": float("nan")}})
    error_of(await rest.http.post("/api/events", content=content), 400, "invalid_event")


async def test_data_is_held_against_the_schema_while_somebody_listens(
    server: ServerProcess, rest: RestClient
) -> None:
    body = {**BODY, "data": {"action": "no such action", "msg": "", "kernel_id": "k"}}
    assert (await post(rest, body)).status_code == 204
    async with listening(server) as events:
        message = error_of(await post(rest, body), 400, "invalid_event")
        assert message.startswith("data.action: does not match the schema: enum: ['start'")
        assert "no such action" not in message
        await post(rest, BODY)
        assert (await events.recv())["msg"] == "posted"


async def test_it_needs_the_token(server: ServerProcess) -> None:
    async with RestClient(server.url, None) as stranger:
        error_of(await post(stranger, BODY), 403, "unauthorized")


async def test_events_of_further_schemas_can_be_posted(
    make_server: MakeServer, tmp_path: Path
) -> None:
    files = []
    for name in ("one", "two"):
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(f"$id: urn:example:{name}\nversion: '1'\nproperties: {{}}\n")
    server = make_server("--extra-event-schema-paths", ",".join(map(str, files)))
    async with RestClient(server.url, server.token) as rest, listening(server) as events:
        for name in ("one", "two"):
            body = {"schema_id": f"urn:example:{name}", "version": "1", "data": {"any": name}}
            assert (await post(rest, body)).status_code == 204
            assert await events.recv() == {"schema_id": f"urn:example:{name}", "any": name}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "No such file or directory"),
        ("not a schema", "it holds no schema"),
        (f"$id: {LIFECYCLE}\nversion: '1'\nproperties: {{}}", "already"),
    ],
)
def test_a_schema_that_is_no_good_stops_the_start_with_one_line(
    commands: Commands, home: Home, tmp_path: Path, content: str | None, problem: str
) -> None:
    file = tmp_path / "schema.yaml"
    if content is not None:
        file.write_text(content)
    ended = commands.run("--port", "0", "--extra-event-schema-paths", str(file), home=home)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"kernelkeep: --extra-event-schema-paths: {file}: ")
    assert problem in line
