"""WebSockets that are refused before they begin; the tokens' are in ``tests/api``."""

from __future__ import annotations

import json

import pytest
from websockets.asyncio.client import connect as open_websocket
from websockets.exceptions import InvalidStatus

from tests.support.channels import Connector
from tests.support.framing import FramingName
from tests.support.rest import RestClient
from tests.support.running import KernelStarter, RunningKernel
from tests.support.server import ServerProcess

UNKNOWN = "01234567-89ab-cdef-0123-456789abcdef"


async def _refusal(
    connect: Connector, kernel_id: str, framing: FramingName, **query: str
) -> tuple[int, dict[str, str]]:
    with pytest.raises(InvalidStatus) as refused:
        await connect(kernel_id, framing=framing, query=query)
    response = refused.value.response
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    body = json.loads(bytes(response.body or b""))
    assert set(body) == {"message", "reason", "code"}
    return response.status_code, body


@pytest.mark.parametrize("kernel_id", [UNKNOWN, "none-such", "%2e%2e"])
async def test_an_unknown_kernel(
    server: ServerProcess, connect: Connector, framing: FramingName, kernel_id: str
) -> None:
    mark = server.mark()
    status, body = await _refusal(connect, kernel_id, framing)
    assert status == 404
    assert body["code"] == "kernel_not_found"
    assert body["message"].startswith("Kernel does not exist: ")
    # What a client does wrong is no error of the server.
    assert "ERROR" not in server.output(mark)
    assert "Traceback" not in server.output(mark)


async def test_a_kernel_that_was_deleted(
    connect: Connector, rest: RestClient, start: KernelStarter, framing: FramingName
) -> None:
    kernel = await start("fake")
    await rest.delete(kernel.id)
    status, body = await _refusal(connect, kernel.id, framing)
    assert (status, body["code"]) == (404, "kernel_not_found")


async def test_a_session_id_that_is_too_long(
    connect: Connector, kernel: RunningKernel, framing: FramingName
) -> None:
    status, body = await _refusal(connect, kernel.id, framing, session_id="x" * 1000)
    assert (status, body["code"]) == (400, "invalid_request")
    assert body["message"].startswith("session_id: ")
    assert len(body["message"]) < 200
    await kernel.has_connections(1)


@pytest.mark.parametrize("path", ["/api/kernels", "/api", "/", "/api/kernels/a/channels/b"])
async def test_a_path_without_a_websocket(server: ServerProcess, path: str) -> None:
    with pytest.raises(InvalidStatus) as refused:
        await open_websocket(f"{server.ws_url}{path}?token={server.token}", proxy=None)
    response = refused.value.response
    assert response.status_code == 404
    assert json.loads(bytes(response.body or b""))["code"] == "not_found"


@pytest.mark.parametrize(
    "session_id", ["x" * 255, "sé ssion/€", "a b\n", "0", "00000000-0000-0000-0000-000000000000"]
)
async def test_odd_session_ids_work(
    kernel: RunningKernel, framing: FramingName, session_id: str
) -> None:
    channels = await kernel.connect(framing=framing, session_id=session_id)
    assert (await channels.execute("print a")).text == "a\n"
