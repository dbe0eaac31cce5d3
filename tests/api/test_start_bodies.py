"""The body of a request to start a kernel, in every form that clients send, and wrong ones."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator

import psutil
import pytest

from tests.api.errors import error_of
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

SECRET = "a value that must not come back"
LIMIT = 2**20

CONTENT_TYPES = [
    None,
    "application/json",
    "application/json; charset=utf-8",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "nonsense",
]


async def _start(rest: RestClient, content: bytes, content_type: str | None = None) -> str:
    """The name under which a kernel was started; it is deleted again."""
    headers = {} if content_type is None else {"Content-Type": content_type}
    response = await rest.request("POST", "/api/kernels", 201, content=content, headers=headers)
    kernel = response.json()
    await rest.delete(kernel["id"])
    return str(kernel["name"])


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
async def test_the_content_type_makes_no_difference(
    rest: RestClient, content_type: str | None
) -> None:
    assert await _start(rest, b'{"name": "FAKE"}', content_type) == "FAKE"


@pytest.mark.parametrize("content_type", CONTENT_TYPES)
async def test_an_empty_body_starts_the_default(rest: RestClient, content_type: str | None) -> None:
    assert await _start(rest, b"", content_type) == "fake"


@pytest.mark.parametrize(
    "body",
    [
        b"null",
        b"{}",
        b' \r\n{"name": null}\n',
        b'{"name": null, "path": null, "env": null, "kernel_id": null}',
        b'{"type": "notebook", "unknown": [1, {"deep": null}], "id": 7}',
    ],
)
async def test_nothing_that_matters_starts_the_default(rest: RestClient, body: bytes) -> None:
    assert await _start(rest, body) == "fake"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"name=fake",
        b'{"name": "fake"',
        b"{'name': 'fake'}",
        b'{"name": "fake"} trailing',
        b'{"name": "\xff\xfe"}',
        b"\x00",
    ],
)
async def test_what_is_not_json_is_refused(rest: RestClient, body: bytes) -> None:
    response = await rest.http.post("/api/kernels", content=body)
    assert error_of(response, 400, "invalid_json") == "Invalid JSON in body of request"


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000])
async def test_what_is_too_deep_is_refused_unparsed(rest: RestClient, body: bytes) -> None:
    response = await rest.http.post("/api/kernels", content=body)
    assert "deeper than" in error_of(response, 400, "invalid_json")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (f'"{SECRET}"', "body"),
        (f'["{SECRET}"]', "body"),
        ("7", "body"),
        ("true", "body"),
        (f'{{"name": ["{SECRET}"]}}', "name"),
        ('{"owned": 0}', "owned"),
        ('{"name": 7}', "name"),
        ('{"name": NaN}', "name"),
        (f'{{"path": {{"a": "{SECRET}"}}}}', "path"),
        ('{"path": 7}', "path"),
        (f'{{"env": "{SECRET}"}}', "env"),
        (f'{{"env": ["{SECRET}"]}}', "env"),
        (f'{{"env": {{"NAME": ["{SECRET}"]}}}}', "env.NAME"),
        ('{"env": {"NAME": 7}}', "env.NAME"),
        ('{"env": {"NAME": null}}', "env.NAME"),
        ('{"kernel_id": 7}', "kernel_id"),
        (f'{{"kernel_id": ["{SECRET}"]}}', "kernel_id"),
        (f'{{"engine_options": "{SECRET}"}}', "engine_options"),
        (f'{{"engine_options": {{"memory": ["{SECRET}"]}}}}', "engine_options.memory"),
        ('{"engine_options": {"memory": null}}', "engine_options.memory"),
        ('{"engine_options": {"cpus": NaN}}', "engine_options.cpus"),
        (json.dumps({"engine_options": dict.fromkeys(map(str, range(65)), 1)}), "engine_options"),
    ],
)
async def test_a_wrong_shape_names_the_field_and_not_the_value(
    rest: RestClient, body: str, field: str
) -> None:
    response = await rest.http.post("/api/kernels", content=body)
    assert error_of(response, 400, "invalid_request").startswith(f"{field}: ")
    assert SECRET not in response.text
    assert await rest.kernels() == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"name": "\\ud800"}', 400),
        (b'{"name": "a\\u0000b"}', 404),
        (b'{"name": "../../etc"}', 404),
        (b'{"name": "%s"}' % (b"x" * 2**19), 400),
        (b'{"path": "\\ud800"}', 400),
        (b'{"kernel_id": "\\ud800"}', 400),
        (b'{"env": {"\\ud800": "x"}}', 400),
        (b'{"env": {"\\ud800": 7}}', 400),
        (b'{"env": {"%s": 7}}' % (b"x" * 2**19), 400),
    ],
)
async def test_odd_text_is_refused_in_few_words(rest: RestClient, body: bytes, status: int) -> None:
    response = await rest.http.post("/api/kernels", content=body)
    error_of(response, status, response.json()["code"])
    assert len(response.content) < 1000
    assert await rest.kernels() == []


@pytest.mark.parametrize("given", [{"memory": "4GiB"}, {"": True}, {"image": 1.5}])
async def test_kernels_of_this_machine_have_no_options_of_an_engine(
    rest: RestClient, given: dict[str, object]
) -> None:
    kernel = {"name": "fake", "engine_options": given}
    session = {"path": "a.ipynb", "type": "notebook", "kernel": kernel}
    for path, body in (("/api/kernels", kernel), ("/api/sessions", session)):
        answer = await rest.http.post(path, json=body)
        assert answer.status_code == 400
        (option,) = given
        told = answer.json()
        assert (told["code"], told["option"]) == ("engine_option_refused", option)
    assert await rest.kernels() == []
    assert (await rest.request("GET", "/api/sessions")).json() == []
    await rest.delete((await rest.start_kernel("fake", engine_options={}))["id"])


async def _endless() -> AsyncIterator[bytes]:
    for _ in range(64):
        yield b" " * 2**20


async def test_a_body_that_is_too_large_is_refused(rest: RestClient) -> None:
    for content in (b" " * (LIMIT + 1), _endless()):
        response = await rest.http.post("/api/kernels", content=content)
        assert str(LIMIT) in error_of(response, 413, "request_too_large")
    assert await _start(rest, b'{"name": "fake"}' + b" " * (LIMIT - 16)) == "fake"


@pytest.mark.parametrize("length", ["Content-Length: 100", "Transfer-Encoding: chunked"])
async def test_a_body_that_breaks_off_is_no_fault_of_the_server(
    server: ServerProcess, rest: RestClient, length: str
) -> None:
    mark = server.mark()
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as client:
        head = (
            "POST /api/kernels HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Authorization: token {server.token}\r\n{length}\r\n\r\n"
        )
        client.sendall(head.encode() + b"4\r\n{}  ")
        port = client.getsockname()[1]
    await eventually(lambda: port not in _peers(server))
    assert await rest.kernels() == []
    assert "Traceback" not in server.output(mark)


def _peers(server: ServerProcess) -> set[int]:
    """The ports of those that are connected to the server."""
    connections = psutil.Process(server.pid).net_connections("tcp")
    return {peer.raddr.port for peer in connections if peer.status != psutil.CONN_LISTEN}
