"""JupyterLab's extension jupyter-resource-usage in a browser, as docs/owners.md has it shown."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from playwright.async_api import expect

from tests.conftest import servers
from tests.support.balancer import free_port
from tests.support.jupyterlab import JupyterLab
from tests.support.lab_page import LOAD_MS, lab_page, write_notebook
from tests.support.programs import Program
from tests.support.proxies import program
from tests.support.rest import RestClient
from tests.support.rooms import REPOSITORY
from tests.support.server import ServerProcess

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server()


class Nginx(Program):
    """nginx in front of JupyterLab, with the part of its configuration that docs/owners.md has."""

    def __init__(self, directory: Path, lab: JupyterLab, server: ServerProcess) -> None:
        super().__init__(directory, directory / "output")
        text = (REPOSITORY / "docs/owners.md").read_text()
        [found] = re.findall(r"```nginx\n(.*?kernel_usage.*?)```", text, re.DOTALL)
        self._location = found.replace("TOKEN", server.token)
        self._upstreams = {"lab": lab.url, "kernelkeep": server.url}
        self.port = free_port()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        upstreams = "\n".join(
            f"upstream {name} {{ server {url.removeprefix('http://')}; }}"
            for name, url in self._upstreams.items()
        )
        places = "\n".join(
            f"{what}_temp_path {self._directory / what};"
            for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        user = "user root;" if os.geteuid() == 0 else ""
        config = self._directory / "nginx.conf"
        config.write_text(f"""
daemon off; pid {self._directory / "pid"}; error_log stderr; worker_processes 1; {user}
events {{ worker_connections 512; }}
http {{
  {places}
  access_log off;
  {upstreams}
  server {{
    listen 127.0.0.1:{self.port};
    {self._location}
    location / {{
      proxy_pass http://lab;
      proxy_http_version 1.1;
      proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $http_connection;
    }}
  }}
}}
""")
        return [program("nginx", "nginx-light"), "-p", str(self._directory), "-c", str(config)]

    def environment(self) -> Mapping[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self._directory)}

    def urls(self) -> Sequence[str]:
        return [f"{self.url}/api"]


async def test_jupyterlab_shows_what_a_kernel_uses(server: ServerProcess, tmp_path: Path) -> None:
    write_notebook(server.home.root_dir / "usage.ipynb", "1 + 1", "python3")
    with JupyterLab(server) as lab, Nginx(tmp_path, lab, server) as nginx:
        async with lab_page(lab, "usage.ipynb", url=nginx.url) as page:
            await page.get_by_title("Kernel Usage").click()
            shown = page.locator(".jp-KernelUsage-separator")
            await expect(shown.filter(has_text="Memory:")).to_contain_text("MB", timeout=LOAD_MS)
            text = "\n".join(await shown.all_inner_texts())
            async with RestClient(server.url, server.token) as rest:
                [kernel] = await rest.kernels()
                usage = (await rest.request("GET", f"/api/kernels/{kernel['id']}/usage")).json()
                await rest.delete(kernel["id"])
    assert f"Process ID: {usage['pid']}" in text
