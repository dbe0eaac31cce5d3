"""Logging in with a browser: redirects, the cookie, and the token that the page takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.support.services import Service, answer

HUB: dict[str, Any] = {"jupyterhub_tokens": True, "jupyterhub_service": "kk"}
USER = {"kind": "user", "name": "anna", "groups": [], "scopes": ["access:services"]}
HOME = "http://127.0.0.1/services/kk"


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    async with Service() as service:
        service.answers["/hub/api/oauth2/token"] = answer({"access_token": "anna-anna"})
        service.answers["/hub/api/user"] = answer(USER)
        yield service


def browser(
    service: Service, tmp_path: Any, scheme: str = "http", **more: Any
) -> httpx.AsyncClient:
    settings = Settings(
        **HUB,
        jupyterhub_api_url=f"{service.url}/hub/api",
        jupyterhub_url="/hub",
        state_dir=tmp_path,
        root_path="/services/kk",
        **{"jupyterhub_client_secret": "s3cret", **more},
    )
    transport = httpx.ASGITransport(create_app(settings))
    url = HOME.replace("http", scheme, 1)
    return httpx.AsyncClient(transport=transport, base_url=url, trust_env=False)


async def begin(client: httpx.AsyncClient) -> dict[str, str]:
    sent = await client.get("/login/jupyterhub")
    assert sent.status_code == 302
    assert sent.headers["location"].startswith("/hub/api/oauth2/authorize?")
    query = parse_qs(urlsplit(sent.headers["location"]).query)
    assert query["redirect_uri"] == ["/services/kk/oauth_callback"]
    return {"state": query["state"][0], "code": "c0de"}


async def test_a_login(service: Service, tmp_path: Any) -> None:
    async with browser(service, tmp_path) as client:
        ways = await client.get("/api/login")
        assert ways.json() == {"providers": [{"name": "JupyterHub", "url": "login/jupyterhub"}]}
        back = await client.get("/oauth_callback", params=await begin(client))
        assert (back.status_code, back.headers["location"]) == (302, "./#/logged-in")
        assert "anna-anna" not in str(back.headers)
        taken = await client.post("/api/login")
        assert (taken.status_code, taken.json()) == (200, {"token": "anna-anna"})
        assert taken.headers["cache-control"] == "no-store"
        assert not client.cookies
        again = await client.post("/api/login")
        assert (again.status_code, again.json()["code"]) == (403, "login_not_begun")


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_the_cookie(service: Service, tmp_path: Any, scheme: str) -> None:
    async with browser(service, tmp_path, scheme) as client:
        sent = await client.get("/login/jupyterhub")
    name, *attributes = sent.headers["set-cookie"].split("; ")
    assert name.startswith("kernelkeep-login=")
    expected = {"HttpOnly", "SameSite=lax", "Path=/services/kk/", "Max-Age=600"}
    assert {*attributes} == expected | ({"Secure"} if scheme == "https" else set())
    assert sent.headers["referrer-policy"] == "no-referrer"


async def test_a_page_elsewhere_takes_no_token(service: Service, tmp_path: Any) -> None:
    async with browser(service, tmp_path) as client:
        await client.get("/oauth_callback", params=await begin(client))
        for headers in ({"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
            refused = await client.post("/api/login", headers=headers)
            assert refused.json()["code"] == "forbidden_origin"
        assert (await client.post("/api/login")).status_code == 200


async def test_another_browsers_login_is_not_ended_here(service: Service, tmp_path: Any) -> None:
    async with browser(service, tmp_path) as client:
        theirs = await begin(client)
        client.cookies.clear()
        for _ in range(2):
            back = await client.get("/oauth_callback", params=theirs)
            assert back.headers["location"] == "./#/login-failed"
            await begin(client)
        assert not [asked for asked in service.asked if asked.path.endswith("token")]


async def test_somebody_who_says_no_at_the_hub(service: Service, tmp_path: Any) -> None:
    async with browser(service, tmp_path) as client:
        state = (await begin(client))["state"]
        params = {"state": state, "error": "access_denied"}
        assert (await client.get("/oauth_callback", params=params)).status_code == 302
        refused = await client.post("/api/login")
        assert (refused.status_code, refused.json()["code"]) == (403, "login_refused")


async def test_somebody_who_may_not_come_in(service: Service, tmp_path: Any) -> None:
    service.answers["/hub/api/user"] = answer({**USER, "scopes": []})
    async with browser(service, tmp_path) as client:
        await client.get("/oauth_callback", params=await begin(client))
        assert (await client.post("/api/login")).json()["code"] == "login_refused"


async def test_a_hub_that_is_down(service: Service, tmp_path: Any) -> None:
    async with browser(service, tmp_path) as client:
        asked = await begin(client)
        await service.stop()
        await client.get("/oauth_callback", params=asked)
        refused = await client.post("/api/login")
        assert (refused.status_code, refused.json()["code"]) == (503, "identity_unavailable")
        await service.start()


async def test_no_way_to_log_in(service: Service, tmp_path: Any) -> None:
    async with browser(service, tmp_path, jupyterhub_client_secret="") as client:
        for path in ("/api/login", "/login/jupyterhub", "/oauth_callback"):
            assert (await client.get(path)).status_code == 403  # as any path that there is not
