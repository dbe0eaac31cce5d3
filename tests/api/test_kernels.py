"""The kernels resource: list, start, look at, interrupt, restart, delete.

These are the tests of `app.managers.kernels.model`.
"""

from __future__ import annotations

import re

import pytest

from tests.api.errors import STANDARD_POLICY, error_of
from tests.support.kernelspecs import shell_spec, write_kernelspec
from tests.support.processes import eventually, is_alive
from tests.support.rest import RestClient
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess

MODEL_KEYS = ["id", "name", "last_activity", "execution_state", "connections", "generation"]
TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
UNKNOWN = "01234567-89ab-cdef-0123-456789abcdef"


async def test_a_server_starts_without_kernels(rest: RestClient) -> None:
    response = await rest.request("GET", "/api/kernels")
    assert response.content == b"[]"


async def test_a_kernel_is_started(rest: RestClient, start: KernelStarter) -> None:
    response = await rest.http.post("/api/kernels", json={"name": "fake"})
    model = response.json()
    start.started.append(model["id"])
    assert response.status_code == 201
    assert response.headers["Location"] == f"/api/kernels/{model['id']}"
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Content-Security-Policy"] == STANDARD_POLICY
    assert list(model) == MODEL_KEYS
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", model["id"])
    assert TIMESTAMP.fullmatch(model["last_activity"])
    assert (model["name"], model["execution_state"], model["connections"]) == (
        "fake",
        "starting",
        0,
    )


async def test_a_kernel_becomes_idle_without_any_client(rest: RestClient) -> None:
    kernel = await rest.start_kernel("fake")
    model = await rest.wait_for_state(kernel["id"], "idle")
    assert list(model) == MODEL_KEYS
    assert TIMESTAMP.fullmatch(model["last_activity"])
    await rest.delete(kernel["id"])


async def test_kernels_are_listed_in_the_order_of_their_start(
    rest: RestClient, start: KernelStarter
) -> None:
    started = [(await start("fake")).id for _ in range(4)]
    listed = await rest.kernels()
    assert [kernel["id"] for kernel in listed] == started
    assert listed == [await rest.kernel(kernel_id) for kernel_id in started]


async def test_the_name_is_the_one_that_was_asked_for(start: KernelStarter) -> None:
    kernel = await start("FAKE")
    assert (await kernel.model())["name"] == "FAKE"
    assert (await kernel.channels.execute("print a")).text == "a\n"


@pytest.mark.parametrize("body", [{"name": "python"}, {"name": "python3"}])
async def test_python_is_python3(rest: RestClient, body: dict[str, str]) -> None:
    kernel = await rest.start_kernel(**body)
    assert kernel["name"] == "python3"
    await rest.delete(kernel["id"])


async def test_a_deleted_kernel_is_gone(rest: RestClient, start: KernelStarter) -> None:
    kernel = await start("fake")
    pid = await kernel.pid()
    response = await rest.request("DELETE", f"/api/kernels/{kernel.id}", 204)
    assert not is_alive(pid)
    assert response.content == b""
    assert "Content-Type" not in response.headers
    gone = await rest.http.get(f"/api/kernels/{kernel.id}")
    assert error_of(gone, 404, "kernel_not_found") == f"Kernel does not exist: {kernel.id}"
    assert await rest.kernels() == []


@pytest.mark.parametrize("kernel_id", [UNKNOWN, "zzz", "111-111-111-111-111", "%E2%82%AC"])
@pytest.mark.parametrize(
    ("method", "action"),
    [("GET", ""), ("DELETE", ""), ("POST", "/interrupt"), ("POST", "/restart")],
)
async def test_a_kernel_that_does_not_exist(
    rest: RestClient, method: str, action: str, kernel_id: str
) -> None:
    response = await rest.http.request(method, f"/api/kernels/{kernel_id}{action}")
    named = "€" if kernel_id.startswith("%") else kernel_id
    assert error_of(response, 404, "kernel_not_found") == f"Kernel does not exist: {named}"


@pytest.mark.parametrize("name", ["fake", "fake-message"])
@pytest.mark.parametrize("body", [None, b"{}", b'{"kernel_id": "it"}', b"not JSON"])
async def test_interrupt(start: KernelStarter, name: str, body: bytes | None) -> None:
    kernel = await start(name)
    running = await kernel.busy("sleep 60")
    path = f"/api/kernels/{kernel.id}/interrupt"
    response = await kernel.rest.request("POST", path, 204, content=body)
    assert response.content == b""
    assert "Content-Type" not in response.headers
    assert (await kernel.channels.exchange(running)).error["ename"] == "KeyboardInterrupt"


async def test_interrupt_of_a_kernel_that_runs_nothing_changes_nothing(
    rest: RestClient, start: KernelStarter
) -> None:
    kernel = await start("fake-slow", ready=False)
    await rest.interrupt(kernel.id)
    await kernel.becomes("idle")
    await rest.interrupt(kernel.id)
    assert (await kernel.channels.execute("print still here")).text == "still here\n"


async def test_interrupt_of_a_dead_kernel_is_refused(
    rest: RestClient, start: KernelStarter
) -> None:
    kernel = await start("fake-exit", ready=False)
    await kernel.becomes("dead")
    response = await rest.http.post(f"/api/kernels/{kernel.id}/interrupt")
    assert kernel.id in error_of(response, 409, "kernel_not_running")


@pytest.mark.parametrize("body", [None, b"{}", b"not JSON"])
async def test_restart_gives_a_new_process_under_the_same_id(
    rest: RestClient, start: KernelStarter, body: bytes | None
) -> None:
    kernel = await start("fake")
    before = await kernel.pid()
    path = f"/api/kernels/{kernel.id}/restart"
    response = await rest.request("POST", path, 200, content=body)
    model = response.json()
    assert "Location" not in response.headers
    assert response.headers["Content-Type"] == "application/json"
    assert list(model) == MODEL_KEYS
    assert (model["id"], model["name"]) == (kernel.id, "fake")
    assert not is_alive(before)
    assert await kernel.pid() != before
    await eventually(lambda: _is_idle(rest, kernel.id))


async def _is_idle(rest: RestClient, kernel_id: str) -> bool:
    return (await rest.kernel(kernel_id))["execution_state"] == "idle"


async def test_restart_brings_a_dead_kernel_back(
    server: ServerProcess, rest: RestClient, start: KernelStarter
) -> None:
    spec = shell_spec("test -e repaired && exec $FAKE; exit 3")
    write_kernelspec(server.home.jupyter_path, "broken-at-first", spec)
    kernel = await start("broken-at-first", ready=False)
    assert "exited with code 3" in (await kernel.becomes("dead"))["reason"]
    (server.home.root_dir / "repaired").touch()
    await rest.restart(kernel.id)
    assert list(await kernel.becomes("idle")) == MODEL_KEYS
    assert (await kernel.channels.execute("print back")).text == "back\n"


async def test_an_unknown_kernelspec_is_named_with_those_that_there_are(rest: RestClient) -> None:
    response = await rest.http.post("/api/kernels", json={"name": "none-such"})
    message = error_of(response, 404, "kernelspec_not_found")
    assert message.startswith("Kernel spec none-such not found")
    assert "fake-slow" in message
    assert "python3" in message
    assert await rest.kernels() == []


async def test_a_kernel_that_cannot_be_launched_is_an_error_and_no_kernel(rest: RestClient) -> None:
    response = await rest.http.post("/api/kernels", json={"name": "fake-missing"})
    assert "/nonexistent/kernel" in error_of(response, 500, "kernel_start_failed")
    assert await rest.kernels() == []
