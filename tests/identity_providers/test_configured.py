"""Which providers a server has, and what it imports for them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from app.identity_options import DEFAULT_SCOPES
from app.identity_providers.configured import configured_providers
from app.plugins import CannotLoad
from app.settings import Settings
from tests.support.server import REPOSITORY

HUB = {"jupyterhub_tokens": True, "jupyterhub_api_url": "http://127.0.0.1:8081/hub/api"}
ISSUER = {"oidc_issuer": "https://login.example.org", "oidc_audience": ["kernelkeep"]}


def names(**options: Any) -> list[str]:
    return [type(one).__name__ for one in configured_providers(Settings(**options))]


def test_providers_in_order() -> None:
    assert names() == []
    assert names(**HUB) == ["JupyterHub"]
    assert names(**ISSUER) == ["OpenIDConnect"]
    assert names(**ISSUER, **HUB) == ["JupyterHub", "OpenIDConnect"]


def test_scopes_that_are_none() -> None:
    with pytest.raises(CannotLoad, match="--identity-default-scopes: not a scope"):
        names(identity_default_scopes=["kernels:everything"])
    assert names(identity_default_scopes=[]) == []
    assert "*" not in DEFAULT_SCOPES
    assert not any(":admin" in scope or "!" in scope for scope in DEFAULT_SCOPES)


def imported(program: str) -> set[str]:
    """Which of the modules in question a program has imported."""
    wanted = "{'joserfc', 'cryptography', 'tornado.simple_httpclient'}"
    program += f"\nimport sys; print(*sorted({wanted} & {{*sys.modules}}))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    return {*done.stdout.split()}


def test_nothing_is_imported_for_providers_that_are_not_there() -> None:
    begin = "from app.main import create_app\nfrom app.settings import Settings\n"
    hub = f"create_app(Settings(**{HUB!r}))"
    assert imported(f"{begin}create_app(Settings(token='x' * 20))") == set()
    assert "joserfc" not in imported(begin + hub)


def test_without_the_extra_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*sys.modules]:
        if name.startswith(("app.identity_providers.oidc", "joserfc")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "joserfc", None)
    with pytest.raises(CannotLoad, match=r"pip install 'kernelkeep\[oidc\]'"):
        names(**ISSUER)
