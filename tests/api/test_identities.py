"""The chain of identity providers, and what a request gets by it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from starlette.types import Receive, Scope, Send

from app.api import idempotency, identity
from app.api import identities as module
from app.api.identities import IdentityProviders, ServerToken
from app.main import create_app
from app.managers.errors import IdentityUnavailable
from app.managers.owners.principal import Principal
from app.settings import Settings
from tests.api.errors import error_of
from tests.support.identities import TokenTable, principal

ANNA, BEN = principal("anna"), principal("ben", ["kernels:read"])


def _chain(*tables: TokenTable) -> IdentityProviders:
    return IdentityProviders(ServerToken("secret"), tables)


async def test_providers_are_asked_in_order() -> None:
    first, second = TokenTable(asked={"a": ANNA}), TokenTable({"b": BEN}, {"a": BEN})
    chain = _chain(first, second)
    assert chain.known("secret") is chain.own.principal
    assert chain.known("b") is BEN
    assert chain.known("a") is None
    assert await chain.identify("a") is ANNA
    assert second.questions == []
    assert await chain.identify("wrong") is None
    assert second.questions == ["wrong"]


@pytest.mark.parametrize("token", ["", "secre", "secrett", "Secret", "\ud800", "é" * 1000])
async def test_any_other_token_is_nobody_s(token: str) -> None:
    assert _chain().known(token) is None
    assert await _chain().identify(token) is None


async def test_no_provider_is_asked_about_no_token() -> None:
    table = TokenTable({"": ANNA}, {"": ANNA})
    assert _chain(table).known("") is None
    assert await _chain(table).identify("") is None
    assert table.questions == []


@pytest.mark.parametrize("what", ["ended", "expired"])
async def test_a_principal_whose_time_is_over_is_found_as_what_it_is(what: str) -> None:
    over = principal("anna", expires=time.time() - 1 if what == "expired" else None)
    if what == "ended":
        over.end()
    chain = _chain(TokenTable({"a": over}), TokenTable({"a": BEN}))
    assert chain.known("a") is over
    assert await chain.identify("a") is over
    assert over.over


async def test_a_provider_that_raises_does_not_keep_the_next_from_knowing() -> None:
    broken, table = TokenTable(), TokenTable(asked={"a": ANNA})
    broken.error = OSError("a")
    assert await _chain(broken, table).identify("a") is ANNA


@pytest.mark.parametrize("broken", [OSError("the token is tok3n"), None])
async def test_a_token_that_cannot_be_asked_about_is_not_called_wrong(
    broken: Exception | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "IDENTIFY_SECONDS", 0.01)
    table = _Hanging() if broken is None else TokenTable()
    table.error = broken
    with caplog.at_level(logging.ERROR), pytest.raises(IdentityUnavailable):
        await _chain(table).identify("tok3n")
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("could not be asked: " + ("OSError" if broken else "TimeoutError"))
    assert "tok3n" not in caplog.text


async def test_every_provider_is_closed_whatever_the_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.01)
    table = TokenTable()
    await _chain(_Hanging(), table).close()
    assert table.closed


class _Hanging(TokenTable):
    async def identify(self, token: str) -> Principal | None:
        await asyncio.Event().wait()
        raise AssertionError(token)

    async def close(self) -> None:
        await asyncio.Event().wait()


@asynccontextmanager
async def _client(tmp_path: Path, table: TokenTable) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(token=SecretStr("secret"), root_dir=tmp_path, state_dir=tmp_path / "state")
    app = create_app(settings, identity_provider=table)
    async with app.router.lifespan_context(app) as state:

        async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
            await app({**scope, "state": dict(state or {})}, receive, send)

        transport = httpx.ASGITransport(with_state)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            yield client
    assert table.closed


def _shows(token: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"token {token}"}}


async def test_an_application_can_be_given_a_provider(tmp_path: Path) -> None:
    table = TokenTable({"a": ANNA}, {"b": BEN})
    async with _client(tmp_path, table) as client:
        for token, name in [("a", "anna"), ("b", "ben"), ("secret", "anonymous")]:
            me = (await client.get("/api/me", **_shows(token))).json()
            assert me["identity"]["username"] == name
        wrong = await client.get("/api/me", **_shows("c"))
        error_of(wrong, 403, "unauthorized")
        table.error = OSError()
        error_of(await client.get("/api/me", **_shows("c")), 503, "identity_unavailable")
        assert (await client.get("/api/me", **_shows("a"))).status_code == 200
        before = len(table.questions)
        assert (await client.get("/api", **_shows("c"))).status_code == 200
        assert len(table.questions) == before


async def test_scopes_are_held_against_what_a_route_needs(tmp_path: Path) -> None:
    table = TokenTable({"b": BEN})
    async with _client(tmp_path, table) as client:
        assert (await client.get("/api/kernels", **_shows("b"))).json() == []
        refused = await client.post("/api/kernels", json={}, **_shows("b"))
        assert "the scope kernels:write" in error_of(refused, 403, "not_authorized")
        asked = {"permissions": '{"kernels": ["read", "write"], "contents": ["read"]}'}
        me = (await client.get("/api/me", params=asked, **_shows("b"))).json()
        allowed = me["permissions"]
        assert (allowed["kernels"], allowed["contents"]) == (["read"], [])
        assert (me["groups"], me["scopes"]) == ([], ["kernels:read"])


async def test_each_user_is_called_as_it_wants(tmp_path: Path) -> None:
    async with _client(tmp_path, TokenTable({"a": ANNA, "b": principal("ben")})) as client:
        changed = {"display_name": "Ada"}
        assert (await client.patch("/api/me", json=changed, **_shows("a"))).status_code == 200
        for token, name in [("a", "Ada"), ("b", "ben"), ("secret", "Anonymous")]:
            me = (await client.get("/api/me", **_shows(token))).json()
            assert me["identity"]["display_name"] == name


class _Misnaming(TokenTable):
    async def identify(self, token: str) -> Principal | None:
        return principal(f"{token}/b")


async def test_an_owner_s_name_must_be_one(caplog: pytest.LogCaptureFixture) -> None:
    assert await _chain(_Misnaming()).identify("secret") is None
    assert "names an owner that cannot be one" in caplog.text
    assert "secret" not in caplog.text


def test_changes_of_identities_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "MAX_CHANGED", 2)
    users = identity.Users()
    names = ["anna", "ben", "carl"]
    for name in names:
        users.update(principal(name), {"display_name": name.upper()})
    assert [users.identity(principal(name)).display_name for name in names] == [
        "anna",
        "BEN",
        "CARL",
    ]


async def test_keys_of_one_owner_push_out_none_of_another_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(idempotency, "MAX_KEYS", 10)
    keys = idempotency.IdempotencyKeys()
    made = itertools.count()

    async def make(_: str) -> str:
        return str(next(made))

    how = idempotency.Making(make)
    few, many = keys.of("few"), keys.of("many")
    first = await few.once("kernels", "mine", b"", how)
    for number in range(100):
        await many.once("kernels", str(number), b"", how)
    assert await few.once("kernels", "mine", b"", how) == first
    last = str(next(made) - 1)
    assert await many.once("kernels", "99", b"", how) == last
    assert await many.once("kernels", "0", b"", how) != "1"
    monkeypatch.setattr(idempotency, "KEY_SECONDS", -1.0)
    assert await few.once("kernels", "mine", b"", how) != first
