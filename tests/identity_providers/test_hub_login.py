"""Where a Hub is asked for a login, and how. What is a real Hub's is in `test_real_hub`."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from app.identity_providers.hub_login import HubLogin
from app.identity_providers.logins import LoginAttempt
from app.settings import Settings
from tests.support.services import Service, answer

URL = "https://hub.example.org/services/kk/oauth_callback"


def login(**more: Any) -> HubLogin:
    options: dict[str, Any] = {
        "jupyterhub_tokens": True,
        "jupyterhub_api_url": "http://127.0.0.1:1/hub/api",
        "jupyterhub_service": "kk",
        "jupyterhub_url": "/hub",
        "jupyterhub_client_secret": "s3cret",
    }
    return HubLogin(Settings(**{**options, **more}))


@pytest.mark.parametrize(
    ("place", "back"),
    [("/hub", "/services/kk/oauth_callback"), ("https://hub.example.org/hub/", URL)],
)
async def test_the_hubs_page(place: str, back: str) -> None:
    way = login(jupyterhub_url=place)
    asked = LoginAttempt(way.redirect_uri(URL), "st&te", "verifier")
    address = await way.address(asked)
    assert address.startswith(f"{place.rstrip('/')}/api/oauth2/authorize?")
    assert parse_qs(urlsplit(address).query) == {
        "client_id": ["service-kk"],
        "redirect_uri": [back],
        "response_type": ["code"],
        "state": ["st&te"],
    }
    await way.close()


async def test_the_token(service: Service) -> None:
    way = login(jupyterhub_api_url=f"{service.url}/hub/api/", jupyterhub_client_id="other")
    service.answers["/hub/api/oauth2/token"] = answer({"access_token": "a"})
    assert await way.tokens("code", LoginAttempt("/back", "", "")) == ["a"]
    form = parse_qs(service.asked[0].body)
    assert (form["client_id"], form["client_secret"]) == (["other"], ["s3cret"])
    await way.close()
