"""JupyterLab with ``--gateway-url``: what a person does in a notebook, through its own API.

It shows a token of the list with the scopes that docs/owners.md names for it, and no others.
"""

from __future__ import annotations

import asyncio
import base64
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import httpx
import pytest

from tests.conftest import servers
from tests.support.channels import Connector, JupyterChannels
from tests.support.jupyterlab import JupyterLab
from tests.support.processes import children, eventually
from tests.support.rest import RestClient
from tests.support.rooms import REPOSITORY
from tests.support.server import ServerProcess

TIMEOUT = 60.0
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server()


def scopes_of_jupyterlab() -> list[str]:
    """The scopes that docs/owners.md names for JupyterLab."""
    text = (REPOSITORY / "docs/owners.md").read_text()
    sentence = re.search(r"To work with JupyterLab a token takes([^.]*)\.", text)
    assert sentence is not None
    return re.findall(r"`(\w+:\w+)`", sentence[1])


@pytest.fixture(scope="module")
def lab(server: ServerProcess) -> Iterator[JupyterLab]:
    asked = {"name": "jupyterlab", "owner": "ada", "scopes": scopes_of_jupyterlab()}
    made = httpx.post(
        f"{server.url}/api/tokens",
        json=asked,
        headers={"Authorization": f"token {server.token}"},
        trust_env=False,
    )
    assert made.status_code == 201, made.text
    with JupyterLab(server, gateway_token=made.json()["token"]) as lab:
        yield lab


class Notebook:
    """An open notebook: a session of JupyterLab's, and the connection of its page."""

    def __init__(self, lab: JupyterLab, session: dict[str, Any], channels: JupyterChannels) -> None:
        self.session_id: str = session["id"]
        self.kernel_id: str = session["kernel"]["id"]
        self.channels = channels
        self._lab = lab

    async def request(self, method: str, path: str, status: int, **more: Any) -> Any:
        return await asyncio.to_thread(self._lab.request, method, path, status, **more)

    async def kernel(self, action: str, status: int) -> Any:
        return await self.request("POST", f"/api/kernels/{self.kernel_id}/{action}", status)


@asynccontextmanager
async def opened(lab: JupyterLab, path: str) -> AsyncIterator[Notebook]:
    """A notebook with a Python kernel; its session ends with it, if it has not ended before."""
    body = {
        "path": path,
        "type": "notebook",
        "name": path.rpartition("/")[2],
        "kernel": {"name": "python3"},
    }
    session = await asyncio.to_thread(lab.request, "POST", "/api/sessions", 201, json=body)
    async with AsyncExitStack() as stack:
        connect = Connector(lab.ws_url, lab.token, stack)
        channels = await connect(session["kernel"]["id"])
        # As JupyterLab begins.
        info = await channels.request("kernel_info_request", timeout=TIMEOUT)
        assert info.reply["language_info"]["name"] == "python"
        notebook = Notebook(lab, session, channels)
        yield notebook
        sessions = await notebook.request("GET", "/api/sessions", 200)
        if notebook.session_id in [item["id"] for item in sessions]:
            await notebook.request("DELETE", f"/api/sessions/{notebook.session_id}", 204)


async def test_it_finds_the_kernelspecs_and_their_logos(
    lab: JupyterLab, server: ServerProcess
) -> None:
    specs = await asyncio.to_thread(lab.request, "GET", "/api/kernelspecs", 200)
    assert specs["default"] == "python3"
    assert {"python3", "fake"} <= set(specs["kernelspecs"])
    assert specs["kernelspecs"]["fake"]["resources"]["logo-64x64"].endswith("logo-64x64.png")


async def test_a_notebook_runs_its_cells_in_its_own_folder(
    lab: JupyterLab, server: ServerProcess
) -> None:
    (server.home.root_dir / "folder").mkdir()
    async with opened(lab, "folder/notebook.ipynb") as notebook:
        channels = notebook.channels
        exchange = await channels.execute("import os; print(os.getcwd())")
        assert exchange.text == f"{server.home.root_dir / 'folder'}\n"
        assert exchange.reply["status"] == "ok"
        assert (await channels.execute("x = 6 * 7; x")).result == "42"
        assert (await channels.execute("1 / 0")).error["ename"] == "ZeroDivisionError"
        exchange = await channels.execute("print(input('name? '))", answers=["Ada"])
        assert exchange.text == "Ada\n"
        kernels = await notebook.request("GET", "/api/kernels", 200)
        assert notebook.kernel_id in [kernel["id"] for kernel in kernels]


async def test_a_plot_arrives_as_an_image(lab: JupyterLab) -> None:
    code = """
%matplotlib inline
import matplotlib.pyplot as plt
plt.plot([1, 2, 3])
plt.show()
"""
    async with opened(lab, "plot.ipynb") as notebook:
        exchange = await notebook.channels.execute(code, timeout=TIMEOUT)
        (display,) = exchange.of_type("display_data")
        image = base64.b64decode(display.content["data"]["image/png"])
        assert image.startswith(PNG)
        assert len(image) > 1000


async def test_a_slider_is_shown_and_its_comm_is_open(lab: JupyterLab) -> None:
    code = "import ipywidgets; slider = ipywidgets.IntSlider(value=3); slider"
    async with opened(lab, "slider.ipynb") as notebook:
        exchange = await notebook.channels.execute(code, timeout=TIMEOUT)
        (shown,) = [*exchange.of_type("display_data"), *exchange.of_type("execute_result")]
        model = shown.content["data"]["application/vnd.jupyter.widget-view+json"]["model_id"]
        opens = {message.content["comm_id"]: message for message in exchange.of_type("comm_open")}
        assert opens[model].content["data"]["state"]["value"] == 3
        update = {"method": "update", "state": {"value": 7}, "buffer_paths": []}
        await notebook.channels.request(
            "comm_msg", {"comm_id": model, "data": update}, replies=False
        )
        assert (await notebook.channels.execute("slider.value")).result == "7"


async def test_a_cell_is_interrupted(lab: JupyterLab) -> None:
    async with opened(lab, "interrupt.ipynb") as notebook:
        request = await notebook.channels.send_execute("import time; time.sleep(100)")
        await notebook.channels.seen(
            lambda m: m.parent_id == request and m.msg_type == "execute_input"
        )
        await notebook.kernel("interrupt", 204)
        exchange = await notebook.channels.exchange(request)
        assert exchange.error["ename"] == "KeyboardInterrupt"
        assert (await notebook.channels.execute("1 + 1")).result == "2"


async def test_a_notebook_is_renamed_and_keeps_its_kernel(
    lab: JupyterLab, server: ServerProcess
) -> None:
    async with opened(lab, "before.ipynb") as notebook:
        await notebook.channels.execute("x = 42")
        path = f"/api/sessions/{notebook.session_id}"
        asked = {"path": "after.ipynb", "name": "after.ipynb", "type": "notebook"}
        session = await notebook.request("PATCH", path, 200, json=asked)
        assert session["path"] == "after.ipynb"
        assert session["kernel"]["id"] == notebook.kernel_id
        assert (await notebook.channels.execute("x")).result == "42"
        async with RestClient(server.url, server.token) as rest:
            assert (await rest.kernel(notebook.kernel_id))["owner"] == "ada"


async def test_a_kernel_is_restarted(lab: JupyterLab) -> None:
    async with opened(lab, "restart.ipynb") as notebook:
        await notebook.channels.execute("x = 1")
        model = await notebook.kernel("restart", 200)
        assert model["id"] == notebook.kernel_id
        exchange = await notebook.channels.execute("x", timeout=TIMEOUT)
        assert exchange.error["ename"] == "NameError"


async def test_a_cell_that_kills_the_kernel_says_so_and_the_notebook_goes_on(
    lab: JupyterLab,
) -> None:
    async with opened(lab, "exit.ipynb") as notebook:
        channels = notebook.channels
        exchange = await channels.execute("import os; os._exit(1)", timeout=TIMEOUT)
        assert exchange.error["ename"] == "KernelDied"
        assert "exited with code 1" in exchange.error["evalue"]
        await channels.seen(lambda m: m.state == "restarting")
        assert (await channels.execute("6 * 7", timeout=TIMEOUT)).result == "42"


async def test_a_notebook_that_is_shut_down_leaves_no_process(
    lab: JupyterLab, server: ServerProcess
) -> None:
    async with opened(lab, "shutdown.ipynb") as notebook:
        before = len(children(server.pid))
        await notebook.request("DELETE", f"/api/sessions/{notebook.session_id}", 204)
        await eventually(lambda: len(children(server.pid)) == before - 1, TIMEOUT)
        # JupyterLab tells states from its own memory in this mode, so ask where the kernel was.
        async with RestClient(server.url, server.token) as rest:
            assert notebook.kernel_id not in [kernel["id"] for kernel in await rest.kernels()]
