"""jupyter-kernel-client, the library of Jupyter's MCP server, by its public API."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import pytest
from jupyter_kernel_client import JupyterKernelClient  # type: ignore[import-untyped]

from tests.support.processes import children, eventually_sync
from tests.support.server import ServerProcess

TIMEOUT = 60.0


@pytest.fixture
def client(server: ServerProcess) -> Iterator[JupyterKernelClient]:
    """A client with a Python kernel of its own."""
    client = JupyterKernelClient(server_url=server.url, token=server.token)
    client.start(name="python3", timeout=TIMEOUT)
    try:
        yield client
    finally:
        client.stop(timeout=TIMEOUT)


def run(client: JupyterKernelClient, code: str) -> dict[str, object]:
    result: dict[str, object] = client.execute(code, timeout=TIMEOUT)
    return result


def test_code_is_executed_and_its_outputs_come_in_the_form_of_a_notebook(
    client: JupyterKernelClient,
) -> None:
    reply = run(client, "print('here'); 6 * 7")
    assert reply["status"] == "ok"
    assert reply["execution_count"] == 1
    assert reply["outputs"] == [
        {"output_type": "stream", "name": "stdout", "text": "here\n"},
        {
            "output_type": "execute_result",
            "execution_count": 1,
            "data": {"text/plain": "42"},
            "metadata": {},
        },
    ]


def test_an_error_is_told(client: JupyterKernelClient) -> None:
    reply = run(client, "1 / 0")
    assert reply["status"] == "error"
    outputs = reply["outputs"]
    assert isinstance(outputs, list)
    assert [output["ename"] for output in outputs] == ["ZeroDivisionError"]


def test_variables_go_there_and_back(client: JupyterKernelClient) -> None:
    client.set_variable("x", 41)
    run(client, "x += 1")
    value = client.get_variable("x")
    assert value == 42
    assert "x" in [variable["name"] for variable in client.list_variables()]


def test_a_cell_is_interrupted_while_it_runs(
    client: JupyterKernelClient, server: ServerProcess
) -> None:
    headers = {"Authorization": f"token {server.token}"}
    url = f"{server.url}/api/kernels/{client.id}"

    def is_busy() -> bool:
        model = httpx.get(url, headers=headers, timeout=TIMEOUT, trust_env=False).json()
        return bool(model["execution_state"] == "busy")

    def interrupt() -> None:
        if eventually_sync(is_busy, TIMEOUT):
            client.interrupt(timeout=TIMEOUT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    reply = run(client, "import time; time.sleep(50)")
    thread.join(TIMEOUT)
    assert reply["status"] == "error"
    assert run(client, "1")["status"] == "ok"


def test_a_restart_gives_a_new_process(client: JupyterKernelClient) -> None:
    kernel_id = client.id
    run(client, "x = 1")
    client.restart(timeout=TIMEOUT)
    assert client.id == kernel_id
    assert client.is_alive()
    outputs = run(client, "x")["outputs"]
    assert isinstance(outputs, list)
    assert [output["ename"] for output in outputs] == ["NameError"]


def test_a_client_that_stops_takes_its_kernel_with_it(server: ServerProcess) -> None:
    with JupyterKernelClient(server_url=server.url, token=server.token) as client:
        assert run(client, "6 * 7")["status"] == "ok"
        kernel_id = client.id
        assert kernel_id in [kernel["id"] for kernel in client.list_kernels()]
        assert len(children(server.pid)) == 1
    assert eventually_sync(lambda: not children(server.pid), TIMEOUT)
    response = httpx.get(
        f"{server.url}/api/kernels/{kernel_id}",
        headers={"Authorization": f"token {server.token}"},
        timeout=TIMEOUT,
        trust_env=False,
    )
    assert response.status_code == 404


def test_a_second_client_joins_a_kernel_and_leaves_it_running(
    client: JupyterKernelClient, server: ServerProcess
) -> None:
    run(client, "x = 42")
    with JupyterKernelClient(
        server_url=server.url, token=server.token, kernel_id=client.id
    ) as second:
        value = second.get_variable("x")
        assert value == 42
    assert client.is_alive()
    assert run(client, "x")["status"] == "ok"
