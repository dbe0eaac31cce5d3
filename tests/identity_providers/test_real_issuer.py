"""A certified OpenID Connect provider: users with their kernels, and new keys while they work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from app.ws.sending import CREDENTIAL_ENDED
from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.documented import block
from tests.support.issuer import Issuer
from tests.support.node_packages import install
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.server import REPOSITORY, ServerProcess

PAGE = REPOSITORY / "docs" / "owners.md"
KERNELS = ("kernelkeep:kernels:write", "kernelkeep:kernels:execute")
SHORT = 10  # seconds
USERS = {"anna": KERNELS, "ben": ["kernelkeep:kernels:read"], "carla": ["elsewhere:read"]}


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with Issuer(install(Path(__file__).parent / "node"), USERS) as issuer:
        yield issuer


async def status_of(url: str, token: str, path: str = "/api/kernels") -> tuple[int, str]:
    async with RestClient(url, token) as rest:
        answer = await rest.http.get(path)
        return answer.status_code, "" if answer.is_success else answer.json()["code"]


async def test_users_of_an_issuer(issuer: Issuer, make_server: MakeServer, tmp_path: Path) -> None:
    options = block("toml", "[oidc]\noidc_issuer", PAGE)
    config = tmp_path / "kernelkeep.toml"
    config.write_text(options.replace("https://login.example.org/realms/lab", issuer.url))
    server = await asyncio.to_thread(make_server, "--config", str(config))
    anna, ben = issuer.new_token("anna", *KERNELS), issuer.new_token("ben", *USERS["ben"])
    carla = issuer.new_token("carla", *USERS["carla"])
    async with (
        RestClient(server.url, anna) as annas,
        RestClient(server.url, ben) as bens,
        RestClient(server.url, carla) as carlas,
    ):
        kernel = await annas.start_kernel("fake")
        assert [one["id"] for one in await annas.kernels()] == [kernel["id"]]
        assert await bens.kernels() == []
        refused = await bens.http.post("/api/kernels", json={"name": "fake"})
        assert (refused.status_code, refused.json()["code"]) == (403, "not_authorized")
        assert (await status_of(server.url, ben, f"/api/kernels/{kernel['id']}"))[0] == 404
        await carlas.start_kernel("fake")  # by the default scopes
        me = (await annas.request("GET", "/api/me")).json()
        assert me["identity"]["username"] == "anna"
        channels = await JupyterChannels.connect(server.ws_url, kernel["id"], token=anna)
        async with channels:
            assert (await channels.execute("print one")).text == "one\n"
            # A new key signs, and the old one is still shown: both kinds of tokens are good.
            issuer.show("second", "first")
            fresh = issuer.new_token("anna", *KERNELS)
            began = time.monotonic()
            assert await eventually(lambda: _gets(server.url, fresh, 200), 30, 0.5)
            assert time.monotonic() - began < 15  # the pause between two fetches, and some
            assert await _gets(server.url, anna, 200)
            assert (await channels.execute("print two")).text == "two\n"
        # Another server's tokens, and none at all.
        assert await status_of(server.url, fresh[:-8]) == (403, "unauthorized")
        await annas.delete(kernel["id"])
    for secret in (anna, ben, carla, fresh):
        assert secret not in server.output()
        assert secret.split(".")[1] not in server.output()


async def test_somebody_logs_in_with_a_browser(make_server: MakeServer) -> None:
    with Issuer(install(Path(__file__).parent / "node"), USERS) as issuer:
        who = ("--oidc-issuer", issuer.url, "--oidc-audience", "kernelkeep")
        client = ("--oidc-client-id", "page", "--oidc-login-scopes", " ".join(KERNELS[:1]))
        server = await asyncio.to_thread(make_server, *who, *client)
        issuer.admit(f"{server.url}/oauth_callback")
        async with httpx.AsyncClient(trust_env=False, follow_redirects=True) as browser:
            page = await browser.get(f"{server.url}/login/oidc")
            person = {"prompt": "login", "login": "anna", "password": "any"}
            page = await browser.post(f"{page.url}", data=person)
            page = await browser.post(f"{page.url}", data={"prompt": "consent"})
            assert str(page.url) == f"{server.url}/#/logged-in"
            token = (await browser.post(f"{server.url}/api/login")).json()["token"]
    async with RestClient(server.url, token) as rest:
        me = (await rest.request("GET", "/api/me")).json()
        assert me["identity"]["username"] == "anna"
        assert me["groups"] == ["of-anna"]
        assert me["scopes"] == ["kernels:write"]
        await rest.start_kernel("fake")
    assert token not in server.output()


async def _gets(url: str, token: str, status: int) -> bool:
    return (await status_of(url, token))[0] == status


async def _expires(server: ServerProcess, issuer: Issuer) -> None:
    """The end of a token closes what is open with it."""
    async with RestClient(server.url, issuer.new_token("anna", *KERNELS)) as rest:
        kernel = await rest.start_kernel("fake")
        short = issuer.new_token("anna", *KERNELS, seconds=SHORT)
        channels = await JupyterChannels.connect(server.ws_url, kernel["id"], token=short)
        async with channels:
            assert (await channels.closed(SHORT + 30)).code == CREDENTIAL_ENDED
    assert await status_of(server.url, short) == (403, "unauthorized")


async def test_a_key_that_is_withdrawn_is_good_for_nothing(
    issuer: Issuer, make_server: MakeServer
) -> None:
    with Issuer(issuer._packages, USERS) as own:
        options = ("--oidc-issuer", own.url, "--oidc-audience", "kernelkeep")
        server = await asyncio.to_thread(make_server, *options, "--oidc-keys-max-age", "2")
        old, unused = own.new_token("anna", *KERNELS), own.new_token("ben", *USERS["ben"])
        async with RestClient(server.url, old) as annas:
            kernel = await annas.start_kernel("fake")
            assert await _gets(server.url, unused, 200)
            channels = await JupyterChannels.connect(server.ws_url, kernel["id"], token=old)
            async with channels:
                assert (await channels.execute("print one")).text == "one\n"
                own.show("second")
                # Nobody asks anything meanwhile: the server looks at the keys by itself.
                assert (await channels.closed(30)).code == CREDENTIAL_ENDED
        for _ in range(25):  # this is no guessing, however often it is shown
            assert await status_of(server.url, old) == (403, "unauthorized")
        # One with the same key that nothing was open with, and one that was never shown.
        assert await status_of(server.url, unused) == (403, "unauthorized")
        async with RestClient(server.url, own.new_token("anna", *KERNELS)) as annas:
            assert [one["id"] for one in await annas.kernels()] == [kernel["id"]]
            await annas.delete(kernel["id"])


async def test_without_an_issuer_nobody_comes_in(issuer: Issuer, make_server: MakeServer) -> None:
    with Issuer(issuer._packages, USERS) as other:
        options = ("--oidc-issuer", other.url, "--oidc-audience", "kernelkeep")
        times = ("--oidc-clock-skew", "0", "--oidc-keys-max-age", "1")
        server = await asyncio.to_thread(make_server, *options, *times)
        token = other.new_token("anna")
        await _expires(server, other)
        of_first = issuer.new_token("anna")
    async with RestClient(server.url, token) as rest:
        # When the keys that were fetched last are too old.
        await eventually(lambda: _gets(server.url, token, 503), 30)
        answer = await rest.http.get("/api/kernels")
        assert (answer.status_code, answer.json()["code"]) == (503, "identity_unavailable")
        assert 1 <= int(answer.headers["Retry-After"]) <= 10
    assert await status_of(server.url, of_first) == (403, "unauthorized")
    # The server's own token needs nobody.
    assert (await status_of(server.url, server.token))[0] == 200
