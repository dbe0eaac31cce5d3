"""Logins with an OpenID Connect provider. What is a real one's is in `test_real_issuer`."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from app.identity_providers import oidc_login as module
from app.identity_providers.logins import LoginAttempt
from app.identity_providers.oidc_login import OpenIDLogin
from app.managers.errors import IdentityUnavailable
from app.settings import Settings
from tests.support.services import Service, answer

ASKED = LoginAttempt("http://127.0.0.1/oauth_callback", "state", "verifier")
DISCOVERY = "/.well-known/openid-configuration"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def login(service: Service, clock: Clock, **more: Any) -> OpenIDLogin:
    options = {"oidc_issuer": service.url, "oidc_audience": ["kk"], "oidc_client_id": "k:k"}
    return OpenIDLogin(Settings(**{**options, **more}), clock)


def document(service: Service, **more: Any) -> bytes:
    return answer(
        {
            "issuer": service.url,
            "authorization_endpoint": f"{service.url}/authorize",
            "token_endpoint": f"{service.url}/token",
            **more,
        }
    )


@pytest.fixture
async def way(service: Service, clock: Clock) -> AsyncIterator[OpenIDLogin]:
    way = login(service, clock, oidc_login_scopes=["groups", "openid"])
    service.answers[DISCOVERY] = document(service)
    service.answers["/token"] = answer({"access_token": "a", "id_token": "i"})
    yield way
    await way.close()


async def test_the_providers_page(service: Service, way: OpenIDLogin) -> None:
    address = await way.address(ASKED)
    assert address.startswith(f"{service.url}/authorize?")
    assert parse_qs(urlsplit(address).query) == {
        "client_id": ["k:k"],
        "redirect_uri": [ASKED.redirect_uri],
        "response_type": ["code"],
        "scope": ["openid groups"],
        "state": ["state"],
        "code_challenge": [ASKED.challenge],
        "code_challenge_method": ["S256"],
    }
    assert way.name == "127.0.0.1"
    assert way.redirect_uri(ASKED.redirect_uri) == ASKED.redirect_uri


async def test_an_endpoint_with_a_query_of_its_own(service: Service, way: OpenIDLogin) -> None:
    service.answers[DISCOVERY] = document(
        service, authorization_endpoint=f"{service.url}/authorize?tenant=1"
    )
    query = parse_qs(urlsplit(await way.address(ASKED)).query)
    assert (query["tenant"], query["state"]) == (["1"], ["state"])


async def test_a_public_client_has_no_secret(service: Service, way: OpenIDLogin) -> None:
    assert await way.tokens("code", ASKED) == ["a", "i"]
    asked = service.asked[-1]
    assert "authorization" not in asked.headers
    form = parse_qs(asked.body)
    assert (form["client_id"], form["code_verifier"]) == (["k:k"], ["verifier"])


async def test_a_client_with_a_secret(service: Service, way: OpenIDLogin, clock: Clock) -> None:
    confidential = login(service, clock, oidc_client_secret="s/3")
    await confidential.tokens("code", ASKED)
    scheme, _, pair = service.asked[-1].headers["authorization"].partition(" ")
    assert (scheme, base64.b64decode(pair)) == ("Basic", b"k%3Ak:s%2F3")
    assert "s/3" not in service.asked[-1].body
    await confidential.close()


async def test_strangers_do_not_have_the_provider_asked_each_time(
    service: Service, way: OpenIDLogin, clock: Clock
) -> None:
    for _ in range(3):
        await way.address(ASKED)
    assert len(service.asked) == 1
    clock.now += module.REMEMBER_SECONDS
    service.answers[DISCOVERY] = answer(status=500)
    for _ in range(3):
        with pytest.raises(IdentityUnavailable):
            await way.address(ASKED)
    assert len(service.asked) == 2
    clock.now += module.PAUSE_SECONDS
    service.answers[DISCOVERY] = document(service)
    assert await way.address(ASKED)
