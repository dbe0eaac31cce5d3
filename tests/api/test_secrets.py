"""The token is in no line that the server writes, in no error and in no kernel."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus
from websockets.typing import Subprotocol

from app.protocol.subprotocols import TOKEN
from tests.conftest import MakeServer
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.running import RunningKernel, kernels_of
from tests.support.server import ServerProcess, UvicornCommandServer, UvicornServer

UNKNOWN = "01234567-89ab-cdef-0123-456789abcdef"


async def _use_and_misuse(server: ServerProcess) -> str:
    """Requests of every kind, right and wrong, that carry the token; the bodies that came back."""
    query = f"token={server.token}"
    encoded = "token=" + "".join(f"%{ord(letter):02x}" for letter in server.token)
    bodies = []
    async with kernels_of(server) as start, httpx.AsyncClient(trust_env=False) as http:
        for credentials in (query, encoded, f"a=b&{query}&c=d"):
            for path in ("/api/kernels", "/api/none-such", f"/api/kernels/{UNKNOWN}", "/api/"):
                for method in ("GET", "POST", "PATCH"):
                    address = f"{server.url}{path}?{credentials}"
                    response = await http.request(method, address, content=b"{")
                    bodies.append(response.text)
            wrong = {"name": server.token * 50, "path": "../..", "env": {"A=B": server.token}}
            for name, value in wrong.items():
                address = f"{server.url}/api/kernels?{credentials}"
                response = await http.post(address, json={name: value})
                bodies.append(response.text if name != "name" else "")
        kernel = await start("fake")
        await _open_websockets(server, kernel, [query, encoded])
        bad = await kernel.connect(token=None, query={"token": server.token})
        await bad.send_frame("not a message")
        assert (await bad.closed()).code == 1007
        response = await http.post(f"{server.url}/api/kernels?{query}", json={"name": "fake-exit"})
        dead = response.json()["id"]
        await start.rest.wait_for_state(dead, "dead")
        await start.rest.delete(dead)
    # Not even HTTP.
    with contextlib.suppress(httpx.HTTPError):
        async with httpx.AsyncClient(trust_env=False) as http:
            await http.request("NONE", f"{server.url}/?{query}")
    return "\n".join(bodies)


async def _open_websockets(
    server: ServerProcess, kernel: RunningKernel, queries: list[str]
) -> None:
    header = {"Authorization": f"Bearer {server.token}"}
    for path in (f"/api/kernels/{kernel.id}/channels", f"/api/kernels/{UNKNOWN}/channels", "/x"):
        for query, headers in ((queries[0], {}), (queries[1], {}), ("session_id=a", header)):
            address = f"{server.ws_url}{path}?{query}"
            await _open(address, kernel, headers)
        encoded = queries[1].removeprefix("token=")
        for token in (server.token, encoded):
            await _open(f"{server.ws_url}{path}", kernel, {}, [TOKEN, f"{TOKEN}.{token}"])


async def _open(
    address: str, kernel: RunningKernel, headers: dict[str, str], offers: Sequence[str] = ()
) -> None:
    subprotocols = [Subprotocol(offer) for offer in offers] or None
    with contextlib.suppress(InvalidStatus):
        async with connect(
            address, additional_headers=headers, subprotocols=subprotocols, proxy=None
        ) as websocket:
            assert kernel.id in address
            assert websocket.response is not None
            shown = [value for _, value in websocket.response.headers.raw_items()]
            assert not [value for value in shown if offers and offers[-1] in value]
            await websocket.recv()


async def test_the_command_shows_the_token_in_its_first_lines_only(make_server: MakeServer) -> None:
    server = make_server("--log-level", "debug", "--websocket-ping-interval", "0.2")
    bodies = await _use_and_misuse(server)
    assert server.token not in bodies
    await eventually(lambda: "NONE /" in server.output() or "Invalid HTTP" in server.output())
    lines = [line for line in server.output().splitlines() if _shows(line, server.token)]
    assert len(lines) == 2, lines
    assert lines[0].strip() == f"{server.url}/?token={server.token}"
    assert "jupyter lab" in lines[1]
    assert "DEBUG" in server.output()
    assert "token=[hidden]" in server.output()


async def test_uvicorn_never_shows_the_token(make_server: MakeServer) -> None:
    server = make_server("--log-level", "trace", kind=UvicornServer)
    bodies = await _use_and_misuse(server)
    assert server.token not in bodies
    lines = [line for line in server.output().splitlines() if _shows(line, server.token)]
    assert lines == []
    assert "token=[hidden]" in server.output()


def _shows(line: str, token: str) -> bool:
    encoded = "".join(f"%{ord(letter):02x}" for letter in token)
    return token in line or quote(token) in line or encoded in line.lower()


@pytest.mark.parametrize(
    ("kind", "name", "code"),
    [
        (UvicornServer, "fake", "env"),
        (ServerProcess, "python3", "import json, os; print(json.dumps(dict(os.environ)))"),
    ],
)
async def test_a_kernel_does_not_know_the_token(
    make_server: MakeServer, kind: type[ServerProcess], name: str, code: str
) -> None:
    server = make_server(env={"KERNELKEEP_TOKEN": "overridden"}, kind=kind)
    async with kernels_of(server) as start:
        kernel = await start(name)
        told = (await kernel.channels.execute(code)).text
    environment = json.loads(told)
    assert environment["JPY_PARENT_PID"] == "1"  # the keeper ends it, not ipykernel itself
    assert not [name for name in environment if name.startswith("KERNELKEEP_")]
    assert server.token not in told
    assert "overridden" not in told


async def test_what_proc_shows_of_the_server_has_not_the_token(make_server: MakeServer) -> None:
    """Where it was given by a variable."""
    server = make_server(kind=UvicornCommandServer)
    shown = await asyncio.to_thread(Path(f"/proc/{server.pid}/environ").read_bytes)
    assert b"KERNELKEEP_TOKEN=***" in shown
    assert server.token.encode() not in shown
    async with RestClient(server.url, server.token) as rest:
        assert await rest.kernels() == []


async def test_no_file_of_the_server_holds_the_token(make_server: MakeServer) -> None:
    server = make_server()
    async with kernels_of(server) as start:
        await start("fake")
        async with RestClient(server.url, server.token) as rest:
            await rest.kernelspecs()
        files = [path for path in server.home.path.rglob("*") if path.is_file()]
        assert files
        assert not [path for path in files if server.token.encode() in path.read_bytes()]
