"""A real JupyterLab server whose kernels are those of another server (``--gateway-url``)."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from tests.support.processes import kill_all
from tests.support.programs import Program
from tests.support.server import ServerProcess

REQUEST_TIMEOUT = 60  # seconds


class JupyterLab(Program):
    """``jupyter lab`` with the root directory and the Jupyter directories of a server's home.

    With ``url`` it reaches that server through a proxy; ``env`` is added to its environment.
    ``gateway_token`` is what it shows there (None: the server's own token).
    """

    start_timeout = 180  # the first start on a machine compiles much
    stop_timeout = 30

    def __init__(
        self,
        gateway: ServerProcess,
        *,
        url: str | None = None,
        env: Mapping[str, str] | None = None,
        gateway_token: str | None = None,
    ) -> None:
        super().__init__(gateway.home.root_dir, gateway.home.path / "jupyterlab.log")
        self.token = secrets.token_hex(16)
        self._gateway = gateway
        self._gateway_url = url or gateway.url
        self._env = env
        self._gateway_token = gateway_token or gateway.token
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        gateway = self._gateway
        return [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            *("--ip=127.0.0.1", "--port=0", f"--IdentityProvider.token={self.token}"),
            f"--ServerApp.root_dir={gateway.home.root_dir}",
            f"--gateway-url={self._gateway_url}",
            f"--GatewayClient.auth_token={self._gateway_token}",
        ]

    def environment(self) -> Mapping[str, str]:
        return self._gateway.home.environment(self._env)

    def urls(self) -> list[str]:
        """Known from the file in which a Jupyter server says where it is."""
        folder = Path(self.environment()["JUPYTER_RUNTIME_DIR"])
        try:
            info = json.loads((folder / f"jpserver-{self.process.pid}.json").read_text())
        except (OSError, ValueError):
            return []
        self.port = info["port"]
        return [f"{self.url}/api"]

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        kill_all([p for p in self._gateway.home.processes() if "jupyterlab" in p.cmdline()])

    def request(self, method: str, path: str, status: int, **more: Any) -> Any:
        """The decoded answer of the REST API, as the browser asks it; None for an empty one."""
        response = httpx.request(
            method,
            f"{self.url}{path}",
            headers={"Authorization": f"token {self.token}"},
            timeout=REQUEST_TIMEOUT,
            trust_env=False,
            **more,
        )
        assert response.status_code == status, f"{method} {path}: {response.text}"
        return response.json() if response.content else None
