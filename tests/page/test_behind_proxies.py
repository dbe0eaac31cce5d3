"""The page below a prefix, behind a proxy with TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.conftest import servers
from tests.page.conftest import OpenPage
from tests.support.proxies import PREFIX, Certificate, Nginx
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

BELOW = ("--root-path", PREFIX, "--trusted-proxies", "127.0.0.1", "--stream-keepalive", "1.5")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server(*BELOW)


@pytest.fixture
def nginx(
    server: ServerProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Nginx]:
    certificate = Certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate.certificate))
    with Nginx(server.port, tmp_path, certificate) as proxy:
        yield proxy


async def test_it_is_the_same_behind_nginx(
    nginx: Nginx, open_page: OpenPage, rest: RestClient
) -> None:
    page, _ = await open_page(url=nginx.url)
    assert page.url == f"{nginx.url}/"
    await expect(page.get_by_text("No kernel runs.")).to_be_visible()
    started = await rest.request("POST", "/api/kernels", 201, json={"name": "fake"})
    kernel = started.json()["id"]
    row = page.locator(f"[data-kernel='{kernel}']")
    await expect(row).to_contain_text("idle")
    await page.get_by_role("link", name="Service").click()
    await expect(page.get_by_role("heading", name="Starts by reason")).to_be_visible()
    await page.get_by_role("link", name="Kernels", exact=True).click()
    await row.get_by_role("button", name="Stop").click()
    await expect(row).to_contain_text("gone")
