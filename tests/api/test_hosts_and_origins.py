"""Requests of web pages: which Host and which Origin are served."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import InvalidStatus

from tests.api.errors import error_of
from tests.conftest import MakeServer, servers
from tests.support.channels import Connector
from tests.support.rest import RestClient
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import OpenServer, ServerProcess

FOREIGN = "https://elsewhere.example"

LOCAL_HOSTS = [
    "127.0.0.1",
    "127.0.0.1:8888",
    "127.1.2.3",
    "localhost",
    "LocalHost:9",
    "[::1]",
    "[::1]:8888",
]
FOREIGN_HOSTS = [
    "elsewhere.example",
    "elsewhere.example:8888",
    "127.0.0.1.elsewhere.example",
    "localhost.elsewhere.example",
    "[::2]",
    "0.0.0.0",
    "192.0.2.1",
    "127.0.0.1@elsewhere.example",
    "[::1]elsewhere.example",
    "127.0.0.1:1/x?y=",
    "localhost:elsewhere.example",
    "[localhost]",
    "[::1",
    "127.0.0.1:99999",
    "",
]


@pytest.fixture(scope="module")
def open_server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server that lets everybody in, so that Host and Origin are all that protects it."""
    with servers(request.config) as make_server:
        yield make_server("--default-kernel-name", "fake", kind=OpenServer)


@pytest.fixture
async def anybody(open_server: ServerProcess) -> AsyncIterator[RestClient]:
    async with RestClient(open_server.url, None) as client:
        yield client


@pytest.mark.parametrize("host", LOCAL_HOSTS)
async def test_local_hosts_are_served(rest: RestClient, host: str) -> None:
    await rest.request("GET", "/api/kernels", headers={"Host": host})


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
async def test_foreign_hosts_are_refused_even_with_the_token(rest: RestClient, host: str) -> None:
    for path in ("/api/kernels", "/api", "/docs", "/none-such"):
        response = await rest.http.get(path, headers={"Host": host})
        assert error_of(response, 403, "forbidden_host") == "Forbidden"


async def test_a_websocket_to_a_foreign_host_is_refused(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("fake")
    path = f"/api/kernels/{kernel.id}/channels?token={server.token}"
    to: dict[str, Any] = {"host": "127.0.0.1", "port": server.port, "proxy": None}
    with pytest.raises(InvalidStatus) as refused:
        await open_websocket(f"ws://elsewhere.example{path}", **to)
    assert refused.value.response.status_code == 403
    async with open_websocket(f"ws://localhost{path}", **to) as accepted:
        assert accepted.response is not None
        assert accepted.response.status_code == 101


async def test_other_local_names_are_an_option(make_server: MakeServer) -> None:
    server = make_server("--local-hostnames", "mine.example,Other.example")
    async with RestClient(server.url, server.token) as rest:
        for host, status in (("MINE.example:1", 200), ("other.example", 200), ("localhost", 403)):
            await rest.request("GET", "/api/kernels", status, headers={"Host": host})


async def test_every_host_is_served_where_remote_access_is_allowed(make_server: MakeServer) -> None:
    server = make_server("--allow-remote-access", "true")
    async with RestClient(server.url, server.token) as rest:
        await rest.request("GET", "/api/kernels", headers={"Host": "elsewhere.example"})


@pytest.mark.parametrize("origin", [FOREIGN, "null", "http://127.0.0.1:1", "nonsense"])
async def test_with_the_token_every_origin_is_served_and_told_so(
    rest: RestClient, connect: Connector, shared_kernel: str, origin: str
) -> None:
    response = await rest.request("GET", "/api/kernels", headers={"Origin": origin})
    assert response.headers["Access-Control-Allow-Origin"] == origin
    assert "Origin" in response.headers["Vary"]
    assert "Access-Control-Allow-Credentials" not in response.headers
    channels = await connect(shared_kernel, origin=origin)
    assert (await channels.execute("print a")).text == "a\n"


@pytest.mark.parametrize("origin", [FOREIGN, "null", "http://127.0.0.1", "http://localhost:{port}"])
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/api/kernels"), ("POST", "/api/kernels"), ("GET", "/api"), ("GET", "/none-such")],
)
async def test_without_a_token_a_foreign_origin_finds_nothing(
    open_server: ServerProcess, anybody: RestClient, method: str, path: str, origin: str
) -> None:
    headers = {"Origin": origin.format(port=open_server.port)}
    response = await anybody.http.request(method, path, headers=headers)
    assert error_of(response, 404, "forbidden_origin") == "Not Found"
    assert "Access-Control-Allow-Origin" not in response.headers
    assert await anybody.kernels() == []


async def test_an_origin_is_judged_before_the_token_is_missed(server: ServerProcess) -> None:
    async with RestClient(server.url, None) as stranger:
        response = await stranger.http.get("/api/kernels", headers={"Origin": FOREIGN})
        assert error_of(response, 404, "forbidden_origin") == "Not Found"
        response = await stranger.http.get("/api/kernels", headers={"Origin": server.url})
        assert error_of(response, 403, "unauthorized") == "Forbidden"


async def test_the_same_origin_is_served(open_server: ServerProcess, anybody: RestClient) -> None:
    for origin in (open_server.url, open_server.url.upper()):
        await anybody.request("GET", "/api/kernels", headers={"Origin": origin})


async def test_the_same_host_by_another_scheme_is_another_origin(
    open_server: ServerProcess, anybody: RestClient
) -> None:
    origin = open_server.url.replace("http:", "https:")
    response = await anybody.http.get("/api/kernels", headers={"Origin": origin})
    error_of(response, 404, "forbidden_origin")


@pytest.mark.parametrize("origin", ["http://[::1", "http://a]b", "http://127.0.0.1:x", "http://@"])
async def test_what_is_no_origin_is_a_foreign_one(
    open_server: ServerProcess, anybody: RestClient, origin: str
) -> None:
    for path in ("/api/kernels", "/api"):
        response = await anybody.http.get(path, headers={"Origin": origin})
        error_of(response, 404, "forbidden_origin")
    async with kernels_of(open_server) as start:
        kernel = await start("fake")
        with pytest.raises(InvalidStatus, match="403"):
            await kernel.connect(origin=origin)
    assert "Traceback" not in open_server.output()


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_a_change_by_another_site_is_refused_without_an_origin_too(
    open_server: ServerProcess, anybody: RestClient, site: str
) -> None:
    headers = {"Sec-Fetch-Site": site}
    response = await anybody.http.patch("/api/me", json={"name": "x"}, headers=headers)
    error_of(response, 404, "forbidden_origin")
    await anybody.request("GET", "/api/kernels", headers=headers)
    with pytest.raises(InvalidStatus, match="403"):
        await open_websocket(
            f"{open_server.ws_url}/api/events/subscribe", proxy=None, additional_headers=headers
        )


async def test_a_foreign_websocket_is_refused(open_server: ServerProcess) -> None:
    async with kernels_of(open_server) as start:
        kernel = await start("fake")
        for origin in (FOREIGN, "null"):
            for site in ({}, {"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}):
                with pytest.raises(InvalidStatus) as refused:
                    await kernel.connect(origin=origin, headers=site)
                response = refused.value.response
                assert response.status_code == 403
                assert b"Cross origin websockets not allowed" in (response.body or b"")
        assert (await kernel.model())["connections"] == 1


async def test_a_websocket_that_the_browser_calls_its_own_is_served(
    open_server: ServerProcess,
) -> None:
    async with kernels_of(open_server) as start:
        kernel = await start("fake")
        await kernel.connect(origin=open_server.url)
        for site in ("same-origin", "none"):
            # As behind a proxy that changes the Host.
            headers = {"Sec-Fetch-Site": site}
            channels = await kernel.connect(origin=FOREIGN, headers=headers)
            assert (await channels.execute("print a")).text == "a\n"


async def test_one_allowed_origin(make_server: MakeServer) -> None:
    server = make_server("--allow-origin", FOREIGN, "--allow-credentials", kind=OpenServer)
    async with RestClient(server.url, None) as rest:
        for headers in ({"Origin": FOREIGN}, {}):
            response = await rest.request("GET", "/api/kernels", headers=headers)
            assert response.headers["Access-Control-Allow-Origin"] == FOREIGN
            assert response.headers["Access-Control-Allow-Credentials"] == "true"
        other = {"Origin": f"{FOREIGN}.other"}
        await rest.request("GET", "/api/kernels", 404, headers=other)
        response = await rest.request("OPTIONS", "/api/kernels", headers=other)
        assert response.headers["Access-Control-Allow-Origin"] == FOREIGN
    async with kernels_of(server) as start:
        kernel = await start("fake")
        await kernel.connect(origin=FOREIGN)
        with pytest.raises(InvalidStatus):
            await kernel.connect(origin="https://other.example")


async def test_any_allowed_origin(make_server: MakeServer) -> None:
    server = make_server("--allow-origin", "*")
    async with RestClient(server.url, server.token) as rest:
        response = await rest.request("GET", "/api/kernels", headers={"Origin": FOREIGN})
        assert response.headers["Access-Control-Allow-Origin"] == "*"
    async with RestClient(server.url, None) as stranger:
        response = await stranger.http.get("/api/kernels", headers={"Origin": FOREIGN})
        assert error_of(response, 403, "unauthorized") == "Forbidden"


async def test_a_pattern_of_allowed_origins_must_match_the_whole(make_server: MakeServer) -> None:
    pattern = r"https://[a-z]+\.mine\.example"
    server = make_server("--allow-origin-pat", pattern, kind=OpenServer)
    async with RestClient(server.url, None) as rest:
        origin = "https://lab.mine.example"
        response = await rest.request("GET", "/api/kernels", headers={"Origin": origin})
        assert response.headers["Access-Control-Allow-Origin"] == origin
        for wrong in (
            f"{origin}.elsewhere.example",
            f"{origin}:8443",
            f"evil{origin}",
            "https://lab.mine-example",
            "https://LAB.mine.example",
        ):
            response = await rest.http.get("/api/kernels", headers={"Origin": wrong})
            assert error_of(response, 404, "forbidden_origin") == "Not Found"
    async with kernels_of(server) as start:
        kernel = await start("fake")
        await kernel.connect(origin=origin)
        with pytest.raises(InvalidStatus):
            await kernel.connect(origin=f"{origin}.elsewhere.example")


async def test_a_preflight_is_answered_to_allowed_origins(make_server: MakeServer) -> None:
    server = make_server("--allow-origin-pat", r"https://.*\.mine\.example")
    async with RestClient(server.url, None) as browser:
        for origin, told in (("https://lab.mine.example", True), (FOREIGN, False)):
            headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
            response = await browser.request("OPTIONS", "/api/kernels", headers=headers)
            expected = origin if told else None
            assert response.headers.get("Access-Control-Allow-Origin") == expected
