"""A code becomes tokens, or an error that tells who is to blame and nothing of either."""

from __future__ import annotations

import logging
from urllib.parse import parse_qs

import pytest

from app.identity_providers.code_exchange import exchange
from app.identity_providers.errors import LoginRefused
from app.identity_providers.fetching import Fetcher
from app.identity_providers.logins import LoginAttempt
from app.managers.errors import IdentityUnavailable
from tests.support.services import Service, answer

ASKED = LoginAttempt("/oauth_callback", "state", "verifier")
CODE, SECRET = "c0de-c0de", "s3cret-s3cret"


async def exchanged(service: Service) -> list[str]:
    fetcher = Fetcher(5)
    try:
        return await exchange(
            fetcher,
            f"{service.url}/token",
            CODE,
            ASKED,
            client={"client_id": "me", "client_secret": SECRET},
            fields=("access_token", "id_token"),
        )
    finally:
        await fetcher.close()


async def test_tokens_in_order(service: Service) -> None:
    service.answers["/token"] = answer({"id_token": "i", "access_token": "a", "expires_in": 3})
    assert await exchanged(service) == ["a", "i"]
    (asked,) = service.asked
    assert parse_qs(asked.body) == {
        "grant_type": ["authorization_code"],
        "code": [CODE],
        "redirect_uri": ["/oauth_callback"],
        "client_id": ["me"],
        "client_secret": [SECRET],
    }


async def test_what_is_no_token_is_left_out(service: Service) -> None:
    service.answers["/token"] = answer({"access_token": ["a"], "id_token": "x" * 20_000})
    assert await exchanged(service) == []


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_refused_code(
    service: Service, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    service.answers["/token"] = answer({"error": "invalid_grant"}, status)
    with caplog.at_level(logging.DEBUG), pytest.raises(LoginRefused) as caught:
        await exchanged(service)
    for text in (caplog.text, str(caught.value)):
        assert CODE not in text
        assert SECRET not in text


@pytest.mark.parametrize("answered", [answer(status=500), answer(["a"]), answer(b"<html>")])
async def test_a_service_that_makes_no_sense(service: Service, answered: bytes) -> None:
    service.answers["/token"] = answered
    with pytest.raises(IdentityUnavailable):
        await exchanged(service)


async def test_a_service_that_is_down(service: Service) -> None:
    await service.stop()
    with pytest.raises(IdentityUnavailable):
        await exchanged(service)
    await service.start()
