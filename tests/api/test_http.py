"""What holds for every route: errors, slashes, methods, conditional requests.

These are the tests of `app.api.errors` and `app.routes`.
"""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import httpx
import pytest
from fastapi import APIRouter
from pydantic import SecretStr

from app.api.access import PUBLIC
from app.main import create_app
from app.settings import Settings
from tests.api.errors import STANDARD_POLICY, error_of
from tests.support.rest import RestClient
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess

UNKNOWN = "01234567-89ab-cdef-0123-456789abcdef"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/none-such"),
        ("GET", "/api/none-such"),
        ("POST", "/api/none-such"),
        ("DELETE", "/none/such"),
        ("GET", "//api"),
        ("GET", "/API/kernels"),
        ("POST", f"/api/kernels/{UNKNOWN}/none-such"),
        ("POST", f"/api/kernels/{UNKNOWN}/interrupt/more"),
        ("GET", "/api/kernels%20"),
        ("GET", "/%ff"),
    ],
)
async def test_an_unknown_route(
    server: ServerProcess, rest: RestClient, method: str, path: str
) -> None:
    response = await rest.http.request(method, f"{server.url}{path}")
    assert error_of(response, 404, "not_found") == "Not Found"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("HEAD", "/api/kernels"),
        ("PUT", "/api/kernels"),
        ("PATCH", "/api/kernels"),
        ("DELETE", "/api/kernels"),
        ("HEAD", f"/api/kernels/{UNKNOWN}"),
        ("POST", f"/api/kernels/{UNKNOWN}"),
        ("PATCH", f"/api/kernels/{UNKNOWN}"),
        ("GET", f"/api/kernels/{UNKNOWN}/interrupt"),
        ("DELETE", f"/api/kernels/{UNKNOWN}/restart"),
        ("HEAD", "/api/kernelspecs"),
        ("POST", "/api/kernelspecs"),
        ("PUT", "/api/kernelspecs/fake"),
        ("POST", "/kernelspecs/fake/kernel.js"),
        ("POST", "/api"),
        ("DELETE", "/api/status"),
        ("TRACE", "/api/kernels"),
    ],
)
async def test_a_wrong_method(rest: RestClient, method: str, path: str) -> None:
    response = await rest.http.request(method, path)
    allowed = set(response.headers["Allow"].split(", "))
    assert allowed >= {"OPTIONS"}
    assert method not in allowed
    if path == "/api/kernels":
        assert allowed == {"GET", "POST", "OPTIONS"}
    elif path == f"/api/kernels/{UNKNOWN}":
        assert allowed == {"GET", "DELETE", "OPTIONS"}
    if method == "HEAD":
        assert (response.status_code, response.content) == (405, b"")
    else:
        assert error_of(response, 405, "method_not_allowed") == "Method Not Allowed"


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("/api/kernels/", "/api/kernels"),
        ("/api/", "/api"),
        ("/api/kernels///?a=b%20c&d=%2F", "/api/kernels?a=b%20c&d=%2F"),
        (f"/api/kernels/{UNKNOWN}/", f"/api/kernels/{UNKNOWN}"),
        ("/none%20such/", "/none%20such"),
        ("//elsewhere.example/", "/elsewhere.example"),
        ("///elsewhere.example/%0d%0aX:1/", "/elsewhere.example/%0D%0AX:1"),
    ],
)
async def test_a_slash_at_the_end_leads_to_the_path_without(
    server: ServerProcess, rest: RestClient, path: str, location: str
) -> None:
    for method in ("GET", "POST", "PUT"):
        response = await rest.http.request(method, f"{server.url}{path}")
        assert response.status_code == 302
        assert response.headers["Location"].replace("%3A", ":") == location
        assert response.content == b""


async def test_a_slash_behind_a_resource_leads_to_it(rest: RestClient) -> None:
    response = await rest.request("GET", "/kernelspecs/fake/kernel.js/", 302)
    assert response.headers["Location"] == "/kernelspecs/fake/kernel.js"


@pytest.mark.parametrize("path", ["/api/kernels", f"/api/kernels/{UNKNOWN}", "/none-such", "/docs"])
async def test_options_are_told_to_everybody(rest: RestClient, path: str) -> None:
    response = await rest.request("OPTIONS", path, headers={"Authorization": "token wrong"})
    assert response.content == b""
    assert response.headers["Access-Control-Allow-Headers"] == (
        "accept, content-type, authorization, x-xsrftoken, "
        "idempotency-key, last-event-id, if-none-match, x-request-id, traceparent"
    )
    assert response.headers["Access-Control-Allow-Methods"] == (
        "GET, PUT, POST, PATCH, DELETE, OPTIONS"
    )
    assert "Access-Control-Allow-Origin" not in response.headers


async def test_what_has_not_changed_is_not_sent_again(
    rest: RestClient, start: KernelStarter
) -> None:
    kernel = await start("fake")
    for path in ("/api/kernels", f"/api/kernels/{kernel.id}", "/api/kernelspecs/fake", "/api"):
        etag = (await rest.request("GET", path)).headers["ETag"]
        for known in (etag, f"W/{etag}", f'"other", {etag}'):
            response = await rest.request("GET", path, 304, headers={"If-None-Match": known})
            assert response.content == b""
            assert response.headers["ETag"] == etag
        await rest.request("GET", path, 200, headers={"If-None-Match": '"other"'})


async def test_what_has_changed_is_sent(rest: RestClient, start: KernelStarter) -> None:
    kernel = await start("fake")
    known = {"If-None-Match": (await rest.request("GET", "/api/kernels")).headers["ETag"]}
    await kernel.channels.execute("print a")
    (model,) = (await rest.request("GET", "/api/kernels", headers=known)).json()
    assert model["id"] == kernel.id


async def test_a_refusal_is_never_not_modified(rest: RestClient) -> None:
    etag = (await rest.request("GET", "/api/kernels")).headers["ETag"]
    headers = {"If-None-Match": etag, "Authorization": "token wrong"}
    await rest.request("GET", "/api/kernels", 403, headers=headers)


async def test_the_server_does_not_name_its_software(rest: RestClient) -> None:
    response = await rest.request("GET", "/api")
    assert "Server" not in response.headers
    assert response.headers["Date"].endswith(" GMT")


async def test_a_fault_of_the_server_tells_nothing(tmp_path: Path) -> None:
    settings = Settings(token=SecretStr("secret"), root_dir=tmp_path, state_dir=tmp_path)
    app = create_app(settings)
    router = APIRouter()

    @router.get("/fault", dependencies=[PUBLIC])
    async def fault() -> None:
        raise RuntimeError("the password is swordfish")

    app.include_router(router)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        response = await client.get("/fault", params={"token": "secret"})
    assert response.status_code == 500
    assert response.json() == {
        "message": "Unhandled error",
        "reason": None,
        "code": "internal_error",
        "traceback": "",
    }
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Security-Policy"] == STANDARD_POLICY
    assert response.headers["Connection"] == "close"


async def test_a_proxy_closes_an_idle_connection_before_the_service_does(
    server: ServerProcess,
) -> None:
    """uvicorn's 5 s are less than any proxy's, whose next request may cross the close."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        for _ in range(2):
            writer.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
            assert head.startswith(b"HTTP/1.1 200 ")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            await asyncio.wait_for(reader.readexactly(int(length[1])), 60)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(reader.read(1), 6)
    finally:
        writer.close()
