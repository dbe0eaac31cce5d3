"""Nobody comes in without the token, whatever the route."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import APIRouter
from pydantic import SecretStr
from starlette.applications import Starlette
from starlette.routing import Mount
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from app.api import kernels
from app.main import create_app
from app.protocol.subprotocols import TOKEN
from app.protocol.v1 import SUBPROTOCOL
from app.settings import Settings
from tests.api.errors import error_of
from tests.conftest import servers
from tests.support.executions import Executions
from tests.support.rest import RestClient
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess

UNDOCUMENTED = [
    ("GET", "/docs"),
    ("GET", "/docs/"),
    ("GET", "/docs/swagger-ui-bundle.js"),
    ("GET", "/docs/swagger-ui.css"),
    ("GET", "/openapi.json"),
    ("HEAD", "/kernelspecs/fake/kernel.js"),
    ("GET", "/none-such"),
    ("POST", "/none-such"),
    ("PUT", "/api/kernels"),
    ("HEAD", "/api/kernels"),
    ("GET", "/api/"),
    ("GET", "//api"),
    ("GET", "/api/../api/kernels"),
    ("GET", "/api/%6bernels"),
    ("GET", "/api/kernels/"),
    ("GET", "/api/kernels/none-such"),
    ("GET", "/api/kernels/none-such/channels"),
]

_addresses = itertools.count(1)


def elsewhere() -> dict[str, str]:
    """A header that makes a client one of another address: wrong tokens are counted by it."""
    return {"X-Forwarded-For": f"2001:db8:0:{next(_addresses):x}::1"}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server behind a proxy, which may be anybody on this machine."""
    with servers(request.config) as make_server:
        yield make_server("--default-kernel-name", "fake", "--trusted-proxies", "127.0.0.1")


WRONG = {
    "nothing": {},
    "wrong header": {"headers": {"Authorization": "token wrong"}},
    "scheme only": {"headers": {"Authorization": "token"}},
    "wrong query": {"params": {"token": "wrong"}},
    "empty query": {"params": {"token": ""}},
    "cookie": {"headers": {"Cookie": "token={token}"}},
    "other header": {"headers": {"X-Authorization": "token {token}"}},
}


def _operations(document: dict[str, dict[str, dict[str, object]]]) -> Iterator[tuple[str, str]]:
    for path, operations in document["paths"].items():
        for method in operations:
            yield method.upper(), path


async def _all_routes(rest: RestClient, kernel_id: str) -> list[tuple[str, str]]:
    document = (await rest.request("GET", "/openapi.json")).json()
    known = {"kernel_id": kernel_id, "name": "fake", "path": "kernel.js"}
    filled = [
        (method, re.sub(r"{(\w+)}", lambda found: known.get(found[1], "none-such"), path))
        for method, path in _operations(document)
    ]
    assert ("DELETE", f"/api/kernels/{kernel_id}") in filled
    return [route for route in (*filled, *UNDOCUMENTED) if route != ("GET", "/api")]


@pytest.mark.parametrize("credentials", WRONG)
async def test_every_route_refuses_who_has_no_token(
    server: ServerProcess, rest: RestClient, shared: Executions, credentials: str
) -> None:
    kernel_id = shared.kernel_id
    before = (await shared.run("pid"))["outputs"]
    more: dict[str, Any] = {
        name: {key: value.format(token=server.token) for key, value in values.items()}
        for name, values in WRONG[credentials].items()
    }
    async with RestClient(server.url, None) as stranger:
        for method, path in await _all_routes(rest, kernel_id):
            stranger.http.headers.update(elsewhere())
            response = await stranger.http.request(method, f"{server.url}{path}", **more)
            assert response.status_code == 403, (method, path)
            if method != "HEAD":
                assert error_of(response, 403, "unauthorized") == "Forbidden"
            assert "Set-Cookie" not in response.headers
    assert [model["id"] for model in await rest.kernels()] == [kernel_id]
    assert (await shared.run("pid"))["outputs"] == before


async def test_the_version_is_told_to_everybody(server: ServerProcess) -> None:
    async with RestClient(server.url, None) as stranger:
        assert await stranger.version()
        for wrong in ({"token": "wrong"}, {}):
            await stranger.request("GET", "/api", params=wrong)
        await stranger.request("GET", "/api", headers={"Authorization": "token wrong"})


@pytest.mark.parametrize("query", ["", "?token=wrong", "?token=", f"?session_id={'x' * 1000}"])
async def test_a_websocket_refuses_who_has_no_token(
    server: ServerProcess, rest: RestClient, shared_kernel: str, query: str
) -> None:
    for kernel_id in (shared_kernel, "none-such"):
        url = f"{server.ws_url}/api/kernels/{kernel_id}/channels{query}"
        with pytest.raises(InvalidStatus) as refused:
            await connect(url, proxy=None, additional_headers=elsewhere())
        answer = refused.value.response
        headers = list(answer.headers.raw_items())
        response = httpx.Response(answer.status_code, headers=headers, content=bytes(answer.body))
        assert error_of(response, 403, "unauthorized") == "Forbidden"
    with pytest.raises(InvalidStatus, match="403"):
        await connect(
            f"{server.ws_url}/none-such{query}", proxy=None, additional_headers=elsewhere()
        )
    assert (await rest.kernel(shared_kernel))["connections"] == 0


@pytest.mark.parametrize(
    "header",
    [
        "token {token}",
        "Token {token}",
        "TOKEN {token}",
        "Bearer {token}",
        "bearer {token}",
        "BEARER {token}",
        "token   {token}",
        "Bearer\t{token}",
    ],
)
async def test_schemes_of_the_header(server: ServerProcess, header: str) -> None:
    async with RestClient(server.url, None) as client:
        client.http.headers.update(elsewhere())
        headers = {"Authorization": header.format(token=server.token)}
        await client.request("GET", "/api/kernels", headers=headers)


@pytest.mark.parametrize(
    "header",
    [
        "{token}",
        "token{token}",
        "token={token}",
        "Basic {token}",
        "Basic token {token}",
        "token",
        "token {token}x",
        "token {token} x",
        "token {start}",
        "token '{token}'",
        "token {upper}",
        "token \xff\xfe",
        "",
    ],
)
async def test_headers_that_do_not_count(server: ServerProcess, header: str) -> None:
    token = server.token
    value = header.format(token=token, start=token[:-1], upper=f"{token[:-1]}\u0130")
    async with RestClient(server.url, None) as client:
        client.http.headers.update(elsewhere())
        headers = [(b"Authorization", value.encode("utf-8"))]
        response = await client.http.get("/api/kernels", headers=headers)
        assert error_of(response, 403, "unauthorized") == "Forbidden"


@pytest.mark.parametrize("query", ["token={token}", "a=b&token={token}&c", "token={quoted}"])
async def test_the_token_in_the_query(server: ServerProcess, query: str) -> None:
    quoted = "".join(f"%{ord(letter):02x}" for letter in server.token)
    async with RestClient(server.url, None) as client:
        client.http.headers.update(elsewhere())
        address = f"/api/kernels?{query.format(token=server.token, quoted=quoted)}"
        await client.request("GET", address)


async def test_a_token_in_the_query_is_the_only_one_that_counts(rest: RestClient) -> None:
    await rest.request("GET", "/api/kernels?token=wrong", 403)
    await rest.request("GET", "/api/kernels?token=wr%20ong&a=b", 403)
    await rest.request("GET", "/api/kernels?token=%ff%fe", 403)


async def test_an_empty_token_in_the_query_does_not_count(rest: RestClient) -> None:
    await rest.request("GET", "/api/kernels?token=")
    await rest.request("GET", "/api/kernels?token")


async def test_the_token_in_the_query_wins_over_a_wrong_header(
    server: ServerProcess, rest: RestClient
) -> None:
    headers = {"Authorization": "token wrong"}
    await rest.request("GET", f"/api/kernels?token={quote(server.token)}", headers=headers)


async def test_a_websocket_takes_the_token_of_the_query(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("fake")
    channels = await kernel.connect(token=None, query={"token": server.token})
    assert (await channels.execute("print a")).text == "a\n"


@pytest.mark.parametrize("offers", [[SUBPROTOCOL], [TOKEN]])
async def test_a_websocket_takes_the_token_of_a_subprotocol(
    server: ServerProcess, start: KernelStarter, offers: list[str]
) -> None:
    kernel = await start("fake")
    encoded = "".join(f"%{ord(letter):02x}" for letter in server.token)
    channels = await kernel.connect(token=None, offers=[*offers, f"{TOKEN}.{encoded}"])
    assert channels.websocket.subprotocol == offers[0]
    assert (await channels.execute("print a")).text == "a\n"


async def test_the_events_take_the_token_of_a_subprotocol(server: ServerProcess) -> None:
    offers = [Subprotocol(TOKEN), Subprotocol(f"{TOKEN}.{server.token}")]
    url = f"{server.ws_url}/api/events/subscribe"
    async with connect(url, subprotocols=offers, proxy=None) as websocket:
        assert websocket.subprotocol == TOKEN


@pytest.mark.parametrize("offers", [[TOKEN], [TOKEN, f"{TOKEN}.wrong"], [TOKEN, f"{TOKEN}."]])
async def test_a_websocket_refuses_a_wrong_token_of_a_subprotocol(
    server: ServerProcess, shared_kernel: str, offers: list[str]
) -> None:
    subprotocols = [Subprotocol(offer) for offer in offers]
    for path in (f"/api/kernels/{shared_kernel}/channels", "/api/events/subscribe"):
        with pytest.raises(InvalidStatus, match="403"):
            await connect(
                f"{server.ws_url}{path}",
                subprotocols=subprotocols,
                additional_headers=elsewhere(),
                proxy=None,
            )


async def test_a_request_takes_no_token_of_a_subprotocol(server: ServerProcess) -> None:
    offers = {"Sec-WebSocket-Protocol": f"{TOKEN}, {TOKEN}.{server.token}"}
    async with httpx.AsyncClient(trust_env=False) as http:
        response = await http.get(f"{server.url}/api/kernels", headers=offers)
    assert error_of(response, 403, "unauthorized") == "Forbidden"


def _undeclared() -> APIRouter:
    router = APIRouter()

    @router.get("/undeclared")
    async def undeclared() -> None:
        """A route whose author has forgotten to say who may use it."""

    return router


def _undeclared_websocket() -> APIRouter:
    router = APIRouter()

    @router.websocket("/undeclared")
    async def undeclared() -> None:
        """The same for a WebSocket."""

    return router


def _mounted() -> APIRouter:
    return APIRouter(routes=[Mount("/undeclared", Starlette())])


# The last has a byte of white space in it, as Latin-1 takes it.
@pytest.mark.parametrize("token", ["p+a/s=s#w&o%r d", "naïve schlüssel", "核 の 鍵", "voilà à"])
async def test_a_token_of_any_letters_is_taken_from_the_header_and_the_query(
    tmp_path: Path, token: str
) -> None:
    settings = Settings(token=SecretStr(token), root_dir=tmp_path, state_dir=tmp_path)
    transport = httpx.ASGITransport(create_app(settings))
    encodings = ["utf-8"] if token[0] == "核" else ["utf-8", "latin-1"]  # clients have either
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        for encoding in encodings:
            headers = {b"Authorization": b"token " + token.encode(encoding)}
            assert (await http.get("/none-such", headers=headers)).status_code == 404
            headers = {b"Authorization": b"token " + token[:-1].encode(encoding)}
            assert (await http.get("/none-such", headers=headers)).status_code == 403
        query = f"token={quote(token, safe='')}"
        assert (await http.get(f"/none-such?{query}")).status_code == 404


@pytest.mark.parametrize("make", [_undeclared, _undeclared_websocket, _mounted])
def test_a_route_that_declares_no_access_stops_the_start(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, make: object
) -> None:
    assert callable(make)
    monkeypatch.setattr(kernels, "router", make())
    settings = Settings(token=SecretStr("secret"), root_dir=tmp_path, state_dir=tmp_path)
    with pytest.raises(RuntimeError, match="/undeclared declares no access"):
        create_app(settings)
