"""``auth=none``: only when it is asked for, and only for this machine."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from app.main import create_app
from app.settings import Settings
from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.commands import Commands
from tests.support.home import Home
from tests.support.rest import RestClient
from tests.support.running import kernels_of
from tests.support.server import OpenServer


async def test_everybody_on_this_machine_comes_in(make_server: MakeServer) -> None:
    server = make_server(kind=OpenServer)
    async with RestClient(server.url, None) as anybody:
        assert await anybody.kernels() == []
        await anybody.request("GET", "/docs")
        await anybody.request("GET", "/api/kernels", headers={"Authorization": "token any"})
    async with kernels_of(server) as start:
        kernel = await start("fake")
        channels = await kernel.connect(token=None)
        assert (await channels.execute("print a")).text == "a\n"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "elsewhere.example"])
@pytest.mark.parametrize("how", ["flag", "environment"])
def test_it_is_refused_where_others_could_connect(
    commands: Commands, home: Home, host: str, how: str
) -> None:
    arguments = ["--host", host, "--port", "0"]
    env = {}
    if how == "flag":
        arguments += ["--auth", "none"]
    else:
        env["KERNELKEEP_AUTH"] = "none"
    ended = commands.run(*arguments, home=home, env=env)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "auth=none" in line
    assert host in line
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""


def test_a_token_and_none_at_once_are_refused(commands: Commands, home: Home) -> None:
    ended = commands.run("--auth", "none", "--token", "sesame", home=home)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "token" in line
    assert "sesame" not in line


@pytest.mark.parametrize(
    "options",
    [
        ("--allow-remote-access", "true"),
        ("--allow-origin", "*"),
        ("--allow-origin-pat", ".*"),
        ("--allow-origin-pat", "https?://.+"),
    ],
)
def test_it_is_not_opened_to_the_web_by_mistake(
    commands: Commands, home: Home, options: tuple[str, str]
) -> None:
    ended = commands.run("--auth", "none", *options, home=home)
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert "open_to_web_pages" in line
    settings = {options[0][2:].replace("-", "_"): options[1]}
    Settings(auth="none", open_to_web_pages=True, **settings)  # type: ignore[arg-type]
    Settings(auth="none", allow_remote_access=True, allowed_hosts=["lab.example.org"])
    Settings(auth="none", allow_origin="https://lab.example.org")
    Settings(auth="none", allow_origin_pat=r"https://(a|b)\.example\.org")


@pytest.mark.parametrize(
    ("host", "status"), [("127.0.0.1", 200), ("127.1.2.3", 200), ("[::1]", 200), ("192.0.2.7", 403)]
)
async def test_an_address_that_the_settings_do_not_know_of_is_refused(
    tmp_path: Path, host: str, status: int
) -> None:
    """As under ``uvicorn app.main:app --host 0.0.0.0``: what counts is where a request came in."""
    app = create_app(Settings(auth="none", root_dir=tmp_path, state_dir=tmp_path))
    url = f"http://{host}:8888"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=url) as client:
        response = await client.get("/api", headers={"Host": "localhost"})
    if status == 200:
        assert response.status_code == 200
    else:
        assert "loopback" in error_of(response, 403, "not_loopback")
