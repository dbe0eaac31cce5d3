"""A token that ends closes what is open with it, and is refused (`app.api.endings`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from types import SimpleNamespace
from typing import cast

import httpx
import pytest
from starlette.types import Message
from websockets.asyncio.client import connect as connect_websocket
from websockets.exceptions import InvalidStatus

from app.api.access import AccessMiddleware
from app.api.identities import IdentityProviders
from app.api.wrong_tokens import ALLOWED
from app.managers.limits.shares import Shares
from app.managers.owners.credentials import shown
from app.managers.owners.principal import Principal
from app.managers.owners.scopes import Scopes
from app.managers.owners.token_table import NewToken
from app.managers.owners.tokens import TokenStore
from app.settings import Settings
from app.ws.sending import CREDENTIAL_ENDED
from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.channels import Connector
from tests.support.executions import NDJSON, SSE, Executions
from tests.support.home import Home
from tests.support.identities import principal
from tests.support.kernelspecs import FAKE_SPECS, shell_spec
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.server import ServerProcess, UvicornServer, run_server

SECONDS = 2.0
"""A second is promised; the rest is for a busy machine."""


class Tokens:
    """The list of tokens, which another process than the server's changes."""

    def __init__(self, home: Home) -> None:
        self._home = home

    async def command(self, *arguments: str) -> str:
        """``kernelkeep tokens ...``; what it prints."""
        state_dir = ("--state-dir", str(self._home.state_dir))
        ended = await asyncio.to_thread(
            run_server, "tokens", *arguments, *state_dir, home=self._home
        )
        assert ended.returncode == 0, ended
        return ended.stdout.strip()

    def make(
        self,
        name: str,
        *,
        owner: str = "",
        seconds: float | None = None,
        scopes: tuple[str, ...] = ("user",),
    ) -> str:
        """A token, by default with the scopes of a user."""
        now = time.time()
        expires = None if seconds is None else now + seconds
        wanted = NewToken(name, owner or name, tuple(Scopes.parse(scopes)), expires=expires)
        with contextlib.closing(TokenStore(self._home.state_dir, create=True)) as store:
            return store.add(wanted, now)[1]

    def revoke(self, token: str) -> None:
        with contextlib.closing(TokenStore(self._home.state_dir)) as store:
            assert store.revoke([shown(token)], time.time())


@pytest.fixture
def tokens(home: Home) -> Tokens:
    return Tokens(home)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as opened:
        yield opened


async def streamed(executions: Executions, execution_id: str, accept: str) -> list[str]:
    """The types of the events of a stream, up to its end."""
    events = executions.events(execution_id, accept)
    async with aclosing(events):  # type: ignore[type-var]
        return [event["type"] async for event in events]


@pytest.mark.parametrize("kind", [ServerProcess, UvicornServer])
async def test_one_that_is_revoked_ends_all_that_is_open_with_it(
    make_server: MakeServer,
    home: Home,
    tokens: Tokens,
    stack: AsyncExitStack,
    kind: type[ServerProcess],
) -> None:
    server = make_server(home=home, kind=kind)
    anna = await tokens.command("create", "anna", "--scopes", "user")
    second = tokens.make("second", owner="anna")
    rest = await stack.enter_async_context(RestClient(server.url, anna))
    stays = await stack.enter_async_context(RestClient(server.url, second))
    kernel_id = (await rest.start_kernel("fake"))["id"]
    channels = await Connector(server.ws_url, anna, stack)(kernel_id)
    untouched = await Connector(server.ws_url, second, stack)(kernel_id)
    listener = await stack.enter_async_context(
        connect_websocket(f"{server.ws_url}/api/events/subscribe?token={anna}")
    )
    executions, others = Executions(rest, kernel_id), Executions(stays, kernel_id)
    sleeping = await executions.begin("print a\nsleep 60")
    await executions.until(sleeping, "stream")
    waiting = asyncio.create_task(
        rest.http.get(f"{executions.path}/{sleeping}", params={"wait": 30})
    )
    streams = [
        asyncio.create_task(streamed(executions, sleeping, accept)) for accept in (SSE, NDJSON)
    ]
    kept = asyncio.create_task(streamed(others, sleeping, SSE))
    done, _ = await asyncio.wait({waiting, kept, *streams}, timeout=0.5)
    assert not done
    revoking = asyncio.create_task(tokens.command("revoke", "anna"))
    closed = await channels.closed()
    assert closed.code == CREDENTIAL_ENDED
    ended = time.monotonic()
    error_of(await waiting, 403, "unauthorized")
    for told in await asyncio.gather(*streams):
        assert told[-1] == "stream"
    await listener.wait_closed()
    assert listener.close_code == CREDENTIAL_ENDED
    assert time.monotonic() - ended < SECONDS
    await revoking
    error_of(await rest.http.get("/api/kernels"), 403, "unauthorized")
    with pytest.raises(InvalidStatus):
        await Connector(server.ws_url, anna, stack)(kernel_id)
    # What another token of the same owner has open goes on.
    await others.cancel(sleeping)
    assert (await kept)[-1] == "ended"
    assert (await untouched.execute("print b")).text == "b\n"
    await stays.delete(kernel_id)
    assert "Traceback" not in server.output()
    assert anna not in server.output()


async def test_a_command_is_seen_within_a_second(
    make_server: MakeServer, home: Home, tokens: Tokens, stack: AsyncExitStack
) -> None:
    server = make_server(home=home)
    rest = await stack.enter_async_context(RestClient(server.url, None))
    token = await tokens.command("create", "anna", "--scopes", "user")
    headers = {"Authorization": f"Bearer {token}"}
    await rest.request("GET", "/api/kernels", headers=headers)
    await tokens.command("revoke", "anna")
    revoked = time.monotonic()

    async def refused() -> bool:
        return (await rest.http.get("/api/kernels", headers=headers)).status_code == 403

    await eventually(refused)
    assert time.monotonic() - revoked < SECONDS


async def test_one_that_expires_closes_its_connections(
    make_server: MakeServer, home: Home, tokens: Tokens, stack: AsyncExitStack
) -> None:
    server = make_server(home=home)
    own = await stack.enter_async_context(RestClient(server.url, server.token))
    lasting = tokens.make("lasting", owner="anna")
    rest = await stack.enter_async_context(RestClient(server.url, lasting))
    kernel_id = (await rest.start_kernel("fake"))["id"]
    token = tokens.make("anna", seconds=3)
    channels = await Connector(server.ws_url, token, stack)(kernel_id)
    assert (await channels.closed(3 + SECONDS)).code == CREDENTIAL_ENDED
    async with RestClient(server.url, token) as rest:
        error_of(await rest.http.get("/api/kernels"), 403, "unauthorized")
    await own.delete(kernel_id)


async def test_a_notebook_that_polls_with_an_old_token_locks_nobody_out(
    make_server: MakeServer, home: Home, tokens: Tokens, stack: AsyncExitStack
) -> None:
    server = make_server(home=home)
    old = tokens.make("anna")
    tokens.revoke(old)
    rest = await stack.enter_async_context(RestClient(server.url, old))
    for _ in range(ALLOWED * 2):
        error_of(await rest.http.get("/api/kernels"), 403, "unauthorized")
    wrong = {"Authorization": f"token kk_{'0' * 64}"}
    for _ in range(ALLOWED):
        error_of(await rest.http.get("/api/kernels", headers=wrong), 403, "unauthorized")
    error_of(await rest.http.get("/api/kernels", headers=wrong), 429, "too_many_wrong_tokens")
    error_of(await rest.http.get("/api/kernels"), 403, "unauthorized")


async def test_a_client_that_takes_nothing_is_cut(
    make_server: MakeServer, home: Home, tokens: Tokens, stack: AsyncExitStack
) -> None:
    server = make_server("--no-limit-rate", home=home)
    token = tokens.make("anna")
    own = await stack.enter_async_context(RestClient(server.url, server.token))
    rest = await stack.enter_async_context(RestClient(server.url, token))
    kernel_id = (await rest.start_kernel("fake"))["id"]
    stalled = await Connector(server.ws_url, token, stack)(kernel_id, receive_buffer=4096)
    await stalled.recv()
    await Executions(rest, kernel_id).run("flood 400 50000")
    assert (await own.kernel(kernel_id))["connections"] == 1
    tokens.revoke(token)

    async def cut() -> bool:
        return (await own.kernel(kernel_id))["connections"] == 0

    await eventually(cut, 2 * SECONDS)
    stalled.websocket.transport.abort()
    await own.delete(kernel_id)


async def drained(chunks: AsyncIterator[bytes]) -> None:
    async for _ in chunks:
        pass


async def test_a_download_breaks_off(
    make_server: MakeServer, home: Home, tokens: Tokens, stack: AsyncExitStack
) -> None:
    large = home.root_dir / "large.bin"
    large.touch()
    os.truncate(large, 200 * 2**20)
    server = make_server(home=home)
    token = tokens.make("anna", scopes=("user", "contents:read"))
    rest = await stack.enter_async_context(RestClient(server.url, token))
    async with rest.http.stream("GET", "/files/large.bin") as response:
        assert response.status_code == 200
        chunks = response.aiter_raw(65536)
        await anext(chunks)
        tokens.revoke(token)
        await asyncio.sleep(SECONDS)  # nothing is read, so nothing tells that it has ended
        with pytest.raises(httpx.RemoteProtocolError):
            await drained(chunks)
    assert "Traceback" not in server.output()


async def test_a_handshake_that_is_held_and_a_start_are_refused(
    make_server: MakeServer, home: Home, tokens: Tokens, stack: AsyncExitStack
) -> None:
    gated = shell_spec("while [ ! -e go ]; do sleep 0.05; done; exec $FAKE")
    server = make_server(home=home, specs={**FAKE_SPECS, "gated": gated})
    token = tokens.make("anna")
    own = await stack.enter_async_context(RestClient(server.url, server.token))
    rest = await stack.enter_async_context(RestClient(server.url, token))
    kernel_id = (await rest.start_kernel("gated"))["id"]
    url = f"{server.ws_url}/api/kernels/{kernel_id}/channels?token={token}"
    held = asyncio.create_task(connect_websocket(url).__aenter__())
    done, _ = await asyncio.wait({held}, timeout=0.5)
    assert not done
    tokens.revoke(token)
    with pytest.raises(InvalidStatus) as refused:
        async with asyncio.timeout(SECONDS):
            await held
    assert refused.value.response.status_code == 403
    assert b"unauthorized" in refused.value.response.body
    (home.root_dir / "go").touch()
    await own.delete(kernel_id)
    assert not re.search("Traceback|ERROR", server.output())


class _Ending(Shares):
    """Shares for which other replicas are asked, while the token ends."""

    async def open_websocket(self, principal: Principal) -> None:
        await super().open_websocket(principal)
        principal.end()


async def test_one_that_ends_while_other_replicas_are_asked_opens_no_websocket() -> None:
    shares, anna, sent = _Ending(), principal("anna"), list[Message]()
    identities = SimpleNamespace(
        known=lambda _: anna, own=SimpleNamespace(principal=principal("own"))
    )

    async def app(*_: object) -> None:
        raise AssertionError

    async def receive() -> Message:
        raise AssertionError

    async def send(message: Message) -> None:
        sent.append(message)

    access = AccessMiddleware(app, Settings(), cast(IdentityProviders, identities), {})
    scope = {
        **{"type": "websocket", "path": "/api/events/subscribe", "scheme": "ws"},
        **{"headers": [(b"host", b"localhost")], "query_string": b"token=x"},
        **{"state": {"shares": shares}, "extensions": {"websocket.http.response": {}}},
    }
    await access(scope, receive, send)
    assert sent[0]["status"] == 403
    assert b"unauthorized" in sent[1]["body"]
    assert shares.websockets_of("anna") == 0


@pytest.mark.parametrize(
    "token",
    ["kk_" + "0" * 63, "kk_" + "0" * 65, "kk_" + "\x80" * 64, "kk_\t" + "0" * 63, "k" * 60_000],
)
async def test_what_is_no_token_is_refused(
    make_server: MakeServer, home: Home, tokens: Tokens, token: str
) -> None:
    server = make_server(home=home)
    tokens.make("anna")
    async with RestClient(server.url, None) as rest:
        headers = {b"Authorization": f"token {token}".encode("latin-1")}
        error_of(await rest.http.get("/api/kernels", headers=headers), 403, "unauthorized")
        long = {"Authorization": "token kk_" + "0" * 2**20}
        error_of(await rest.http.get("/api/kernels", headers=long), 431, "headers_too_large")


async def test_a_server_does_not_start_with_a_list_that_it_cannot_trust(
    make_server: MakeServer, home: Home, tokens: Tokens
) -> None:
    tokens.make("anna")
    path = home.state_dir / "tokens.sqlite"
    path.chmod(0o644)
    arguments = ("--token", "x" * 20, "--state-dir", str(home.state_dir), "--port", "0")
    ended = await asyncio.to_thread(run_server, *arguments, home=home)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith(f"chmod 0600 {path}")
