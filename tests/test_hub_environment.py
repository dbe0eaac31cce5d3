"""The variables that a JupyterHub gives a service, as options."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from app.settings import Settings, explain

MANAGED = {
    "JUPYTERHUB_API_TOKEN": "0123456789abcdef",
    "JUPYTERHUB_API_URL": "http://127.0.0.1:8081/hub/api",
    "JUPYTERHUB_SERVICE_NAME": "kernelkeep",
    "JUPYTERHUB_SERVICE_PREFIX": "/jupyter/services/kernelkeep/",
    "JUPYTERHUB_SERVICE_URL": "http://127.0.0.1:10101",
}


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in os.environ:
        if name.upper().startswith(("KERNELKEEP_", "JUPYTERHUB_")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def managed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in MANAGED.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("managed")
@pytest.mark.parametrize("host", ["", "https://hub.example.org"])
def test_logins_with_the_hub(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Settings(jupyterhub_tokens=True).jupyterhub_url
    monkeypatch.setenv("JUPYTERHUB_BASE_URL", "/jupyter/")
    monkeypatch.setenv("JUPYTERHUB_HOST", host)
    monkeypatch.setenv("JUPYTERHUB_CLIENT_ID", "service-other")
    settings = Settings(jupyterhub_tokens=True)
    assert settings.jupyterhub_url == f"{host}/jupyter/hub"
    assert settings.jupyterhub_client_id == "service-other"
    assert settings.jupyterhub_client_secret.get_secret_value() == MANAGED["JUPYTERHUB_API_TOKEN"]


def test_a_secret_of_a_client_without_the_place_of_the_hub() -> None:
    options = {"jupyterhub_api_url": "http://127.0.0.1:1/hub/api"}
    with pytest.raises(ValidationError, match="jupyterhub_url: it takes one"):
        Settings(jupyterhub_tokens=True, jupyterhub_client_secret="s", **options)  # type: ignore[arg-type]


@pytest.mark.usefixtures("managed")
@pytest.mark.parametrize("how", ["flag", "variable", "file"])
def test_what_the_hub_says(how: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if how == "variable":
        monkeypatch.setenv("KERNELKEEP_JUPYTERHUB_TOKENS", "yes")
    elif how == "file":
        (tmp_path / "kernelkeep.toml").write_text("[jupyterhub]\njupyterhub_tokens = true\n")
    settings = Settings(_cli_parse_args=["--jupyterhub-tokens"] if how == "flag" else [])
    assert settings.jupyterhub_api_url == MANAGED["JUPYTERHUB_API_URL"]
    assert settings.jupyterhub_service == "kernelkeep"
    assert settings.root_path == "/jupyter/services/kernelkeep"
    assert (settings.host, settings.port) == ("127.0.0.1", 10101)
    assert settings.any_host
    assert not settings.wants_token


@pytest.mark.usefixtures("managed")
@pytest.mark.parametrize("value", ["", "false"])
def test_it_says_nothing_without_the_option(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if value:
        monkeypatch.setenv("KERNELKEEP_JUPYTERHUB_TOKENS", value)
    settings = Settings()
    assert settings.jupyterhub_api_url == settings.root_path == ""
    assert settings.port == 8888
    assert settings.wants_token


@pytest.mark.usefixtures("managed")
def test_options_count_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELKEEP_PORT", "9999")
    settings = Settings(
        _cli_parse_args=[
            "--jupyterhub-tokens",
            "--jupyterhub-service=other",
            "--allow-remote-access=false",
        ]
    )
    assert (settings.port, settings.jupyterhub_service) == (9999, "other")
    assert not settings.any_host


@pytest.mark.parametrize("url", ["http://[::1", "http://127.0.0.1:port", "", "unix+http://%2Ftmp"])
def test_an_address_that_cannot_be_read_is_none(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTERHUB_API_URL", MANAGED["JUPYTERHUB_API_URL"])
    monkeypatch.setenv("JUPYTERHUB_SERVICE_URL", url)
    assert Settings(_cli_parse_args=["--jupyterhub-tokens"]).port == 8888


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--jupyterhub-tokens"], "jupyterhub_api_url: "),
        (
            ["--jupyterhub-tokens", "--jupyterhub-api-url=http://x/hub/api", "--auth=none"],
            "auth=none",
        ),
        (["--oidc-issuer=https://x.org"], "oidc_audience: "),
        (["--oidc-issuer=https://x.org", "--oidc-audience=kk", "--auth=none"], "auth=none"),
        (["--oidc-issuer=http://x.org", "--oidc-audience=kk"], "--oidc-issuer: not an https URL"),
        (["--oidc-issuer=https://u:p@x.org", "--oidc-audience=kk"], "--oidc-issuer: not a URL"),
        (["--oidc-issuer=https://x.org/?a=b", "--oidc-audience=kk"], "--oidc-issuer: not a URL"),
        (["--oidc-issuer=https://x.org\\@y.org", "--oidc-audience=kk"], "--oidc-issuer: not a URL"),
        (["--oidc-issuer=https://[x", "--oidc-audience=kk"], "--oidc-issuer: not a URL"),
        (["--oidc-algorithms=none"], "--oidc-algorithms: "),
        (["--oidc-algorithms="], "--oidc-algorithms: "),
    ],
)
def test_options_that_do_not_go_together(options: list[str], says: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings(_cli_parse_args=options)
    (line,) = explain(caught.value).splitlines()
    assert line.startswith(says)


def test_an_issuer_on_this_machine_may_do_without_encryption() -> None:
    options = ["--oidc-issuer=http://127.0.0.1:8080/realms/lab", "--oidc-audience=kk"]
    settings = Settings(_cli_parse_args=options)
    assert settings.oidc_issuer == "http://127.0.0.1:8080/realms/lab"
    assert not settings.wants_token
    assert Settings(_cli_parse_args=[*options, "--token=secret"]).token.get_secret_value()
