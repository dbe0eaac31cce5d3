"""A real JupyterLab server whose kernels are those of another server (``--gateway-url``)."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from tests.support.processes import eventually_sync, kill_all
from tests.support.server import ServerProcess

START_TIMEOUT = 90  # seconds; the first start on a machine compiles much
STOP_TIMEOUT = 30  # seconds
REQUEST_TIMEOUT = 60  # seconds


class JupyterLab:
    """``jupyter lab`` with the root directory and the Jupyter directories of a server's home.

    A context manager; all methods block. With ``url`` it reaches that server through a proxy;
    ``env`` is added to its environment. ``gateway_token`` is what it shows there (None: the
    server's own token).
    """

    def __init__(
        self,
        gateway: ServerProcess,
        *,
        url: str | None = None,
        env: Mapping[str, str] | None = None,
        gateway_token: str | None = None,
    ) -> None:
        self.token = secrets.token_hex(16)
        self._gateway = gateway
        self._gateway_url = url or gateway.url
        self._gateway_token = gateway_token or gateway.token
        self._environment = gateway.home.environment(env)
        self._log = gateway.home.path / "jupyterlab.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    @property
    def _command(self) -> list[str]:
        gateway = self._gateway
        return [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            *("--ip=127.0.0.1", "--port=0", f"--IdentityProvider.token={self.token}"),
            f"--ServerApp.root_dir={gateway.home.root_dir}",
            f"--gateway-url={self._gateway_url}",
            f"--GatewayClient.auth_token={self._gateway_token}",
        ]

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self._gateway.home.root_dir,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self.port = eventually_sync(self._find_port, START_TIMEOUT, 0.2) or 0
            assert self.port, f"JupyterLab did not start\n{self.output()}"
            assert eventually_sync(self._answers, START_TIMEOUT, 0.2), self.output()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT)
        finally:
            self._kill()

    def _find_port(self) -> int | None:
        """From the file in which a Jupyter server says where it is."""
        assert self._process is not None
        assert self._process.poll() is None, f"JupyterLab ended\n{self.output()}"
        folder = Path(self._environment["JUPYTER_RUNTIME_DIR"])
        try:
            info = json.loads((folder / f"jpserver-{self._process.pid}.json").read_text())
        except (OSError, ValueError):
            return None
        port: int = info["port"]
        return port

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/api", timeout=5, trust_env=False).is_success
        except httpx.TransportError:
            return False

    def _kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(STOP_TIMEOUT)
        kill_all([p for p in self._gateway.home.processes() if "jupyterlab" in p.cmdline()])

    def output(self) -> str:
        return self._log.read_text(errors="replace")

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
