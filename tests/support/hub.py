"""A real JupyterHub with its proxy, which starts the server as docs/owners.md says."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any, Final

import httpx

from tests.support.clients import free_port
from tests.support.documented import block
from tests.support.home import Home
from tests.support.kernelspecs import FAKE_SPECS, write_kernelspecs
from tests.support.node import NODE
from tests.support.processes import kill_all
from tests.support.programs import Program
from tests.support.server import REPOSITORY

__all__ = ["Hub"]

PAGE: Final = REPOSITORY / "docs" / "owners.md"
NAME: Final = "kernelkeep"

_MORE: Final = """
service = c.JupyterHub.services[0]
service["url"] = "http://127.0.0.1:{server}"
service["api_token"] = "{secret}"
service["oauth_no_confirm"] = True
service["environment"] |= {environment!r}
c.JupyterHub.services.append({{"name": "tests", "api_token": "{admin}"}})
c.JupyterHub.load_roles.append(
    {{"name": "tests", "services": ["tests"], "scopes": ["admin:users", "tokens", "admin:groups"]}}
)
c.JupyterHub.load_groups = {{"guests": {{"users": ["gus"]}}, "operators": {{"users": ["olga"]}}}}
c.JupyterHub.bind_url = "http://127.0.0.1:{public}"
c.JupyterHub.hub_bind_url = "http://127.0.0.1:{hub}"
c.ConfigurableHTTPProxy.api_url = "http://127.0.0.1:{proxy}"
c.ConfigurableHTTPProxy.command = {proxy_command!r}
c.JupyterHub.authenticator_class = "dummy"
c.JupyterHub.spawner_class = "simple"
c.DummyAuthenticator.password = "{password}"
c.Authenticator.allow_all = True
"""


class Hub(Program):
    """The Hub, its proxy and the server, which write into one log.

    ``options`` are further variables of the server. ``packages`` is the directory with the proxy
    (`tests.support.node_packages`).
    """

    start_timeout = 200  # ten with nothing else to do
    stop_timeout = 20

    def __init__(self, packages: Path, options: dict[str, str]) -> None:
        self.home = Home()
        super().__init__(self.home.path / "hub", self.home.path / "hub.log")
        self._directory.mkdir()
        self.password = secrets.token_hex(8)
        self._packages = packages
        self._options = options
        self._secret, self._admin = secrets.token_hex(16), secrets.token_hex(16)
        ports = (free_port() for _ in range(4))
        self._ports = dict(zip(("public", "hub", "proxy", "server"), ports, strict=True))

    @property
    def url(self) -> str:
        """Where the Hub's proxy is."""
        return f"http://127.0.0.1:{self._ports['public']}"

    @property
    def server_url(self) -> str:
        """Where the server is, behind the proxy."""
        return f"{self.url}/services/{NAME}"

    @property
    def hidden_url(self) -> str:
        """Where the server is without the proxy."""
        return f"http://127.0.0.1:{self._ports['server']}/services/{NAME}"

    def command(self) -> list[str]:
        write_kernelspecs(self.home.jupyter_path, FAKE_SPECS)
        (self._directory / "jupyterhub_config.py").write_text(self._config())
        return [sys.executable, "-m", "jupyterhub", "-f", "jupyterhub_config.py"]

    def environment(self) -> dict[str, str]:
        tools = (str(Path(sys.executable).parent), os.environ["PATH"])
        return self.home.environment({"PATH": os.pathsep.join(tools)})

    def urls(self) -> list[str]:
        return [f"{self.url}/hub/api/", f"{self.server_url}/livez"]

    def __exit__(self, *_: object) -> None:
        self.process.kill()  # a Hub that is asked to end takes many seconds for it
        self.process.wait(self.stop_timeout)
        kill_all(self.home.processes())
        self.home.remove()

    def _config(self) -> str:
        script = self._packages / "node_modules/configurable-http-proxy/bin/configurable-http-proxy"
        places = {
            "KERNELKEEP_ROOT_DIR": str(self.home.root_dir),
            "KERNELKEEP_STATE_DIR": str(self.home.state_dir),
        }
        more = _MORE.format(
            **self._ports,
            secret=self._secret,
            admin=self._admin,
            password=self.password,
            proxy_command=[str(NODE), str(script)],
            environment={**self.environment(), **places, **self._options},
        )
        return block("python", "c.JupyterHub.services", PAGE) + more

    def request(self, method: str, path: str, status: int, **more: Any) -> Any:
        """The decoded answer of the Hub's API, asked by an administrator."""
        response = httpx.request(
            method,
            f"{self.url}/hub/api{path}",
            headers={"Authorization": f"token {self._admin}"},
            trust_env=False,
            **more,
        )
        assert response.status_code == status, f"{method} {path}: {response.text}"
        return response.json() if response.content else None

    def new_token(self, user: str, **more: Any) -> tuple[str, str]:
        """A token of a user, who need not exist yet, and its id; ``more`` is for the Hub."""
        if self._look(f"/users/{user}") == httpx.codes.NOT_FOUND:
            self.request("POST", f"/users/{user}", 201)
        made = self.request("POST", f"/users/{user}/tokens", 201, json=more)
        return made["token"], made["id"]

    def _look(self, path: str) -> int:
        headers = {"Authorization": f"token {self._admin}"}
        return httpx.get(f"{self.url}/hub/api{path}", headers=headers, trust_env=False).status_code

    def log_in(self, browser: httpx.Client, user: str) -> str:
        """Log a user in with a browser, as the page does; returns the token that the page gets."""
        browser.follow_redirects = True
        page = browser.get(f"{self.server_url}/login/jupyterhub")
        form = {"username": user, "password": self.password, "_xsrf": browser.cookies["_xsrf"]}
        back = browser.post(str(page.url), data=form)
        assert str(back.url) == f"{self.server_url}/#/logged-in", back.text
        taken = browser.post(f"{self.server_url}/api/login")
        assert taken.status_code == 200, taken.text
        assert browser.post(f"{self.server_url}/api/login").json()["code"] == "login_not_begun"
        token: str = taken.json()["token"]
        return token

    def log_out(self, browser: httpx.Client) -> None:
        """Log the user of a browser out."""
        assert browser.get(f"{self.url}/hub/logout").status_code < 400
