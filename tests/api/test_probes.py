"""The probes: whether the server lives, and whether it could start a kernel.

These are the tests of `app.api.readiness`.
"""

from __future__ import annotations

import asyncio
import os
import resource
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import httpx
import psutil
import pytest

from app.api import readiness
from app.api.readiness import Readiness
from app.managers.kernels.multikernel import MultiKernelManager
from tests.api.errors import error_of
from tests.conftest import servers
from tests.support.processes import eventually, keepers
from tests.support.rest import RestClient
from tests.support.server import ServerProcess


@pytest.fixture(scope="module")
def server(own_server: ServerProcess) -> ServerProcess:
    """It is not ready for a while."""
    return own_server


@pytest.fixture(scope="module")
def limited(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """A server with one kernelspec and without metrics."""
    with servers(request.config) as make_server:
        yield make_server("--allowed-kernelspecs", "fake", "--no-serve-metrics")


async def test_they_answer_everybody_with_nothing_but_yes(server: ServerProcess) -> None:
    async with RestClient(server.url, None) as stranger:
        for path in ("/livez", "/readyz"):
            for headers in ({}, {"Host": "10.0.0.1:8888"}, {"Origin": "https://elsewhere.example"}):
                response = await stranger.request("GET", path, headers=headers)
                assert response.text == "ok\n"
                assert response.headers["Cache-Control"] == "no-store"
        # Only these paths, exactly.
        for path in ("/livez/x", "/LIVEZ", "/%6civez", "/api/livez"):
            error_of(await stranger.http.get(path), 403, "unauthorized")


async def test_they_are_no_activity(server: ServerProcess, rest: RestClient) -> None:
    before = (await rest.status())["last_activity"]
    for path in ("/livez", "/readyz"):
        await rest.request("GET", path)
    assert (await rest.status())["last_activity"] == before


async def test_a_server_that_could_start_no_kernel_is_not_ready(limited: ServerProcess) -> None:
    server = limited
    process = psutil.Process(server.pid)
    folder = server.home.jupyter_path / "kernels" / "fake"
    state = server.home.state_dir
    async with RestClient(server.url, None) as stranger:

        async def answers(status: int) -> httpx.Response:
            response = await stranger.http.get("/readyz")
            assert response.status_code == status
            return response

        await answers(200)
        # The kernelspec goes and comes back.
        mark = server.mark()
        shutil.move(folder, folder.with_name("away"))
        assert (await eventually(lambda: answers(503))).text == "not ready\n"
        await stranger.request("GET", "/livez")
        shutil.move(folder.with_name("away"), folder)
        await eventually(lambda: answers(200))
        await eventually(lambda: "ready again" in server.output(mark))
        assert server.output(mark).count("not ready: there is no kernelspec") == 1
        assert server.output(mark).count("ready again") == 1
        # The descriptors run out.
        limits = process.rlimit(resource.RLIMIT_NOFILE)
        process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds() + 8, limits[1]))
        await eventually(lambda: answers(503))
        process.rlimit(resource.RLIMIT_NOFILE, limits)
        await eventually(lambda: answers(200))
        # The state directory is gone.
        away = state.with_name("away")
        os.rename(state, away)
        await eventually(lambda: answers(503))
        os.rename(away, state)
        await eventually(lambda: answers(200))
    await eventually(lambda: server.output(mark).count("ready again") == 3)
    assert "file descriptors" in server.output(mark)
    assert "the state directory" in server.output(mark)


async def test_a_server_whose_keeper_hangs_is_not_ready(limited: ServerProcess) -> None:
    async with RestClient(limited.url, limited.token) as rest:
        await rest.start_kernel("fake")
        (keeper,) = keepers(psutil.Process(limited.pid).children())

        async def answers(status: int) -> bool:
            response = await rest.http.get("/readyz", timeout=2)
            return response.status_code == status

        assert await answers(200)
        mark = limited.mark()
        keeper.suspend()
        try:
            await eventually(lambda: answers(503), 30)
        finally:
            keeper.resume()
        await eventually(lambda: answers(200), 30)
        assert "not ready: the keeper of kernels does not answer" in limited.output(mark)


async def test_metrics_can_be_switched_off(limited: ServerProcess) -> None:
    async with RestClient(limited.url, limited.token) as rest:
        error_of(await rest.http.get("/metrics"), 404, "not_found")
        await rest.request("GET", "/readyz")


def kernels_in(state_dir: Path) -> MultiKernelManager:
    kernels = SimpleNamespace(
        stopping=False,
        specs=SimpleNamespace(exist=lambda: True),
        settings=SimpleNamespace(state_dir=state_dir),
        keepers=SimpleNamespace(problem=lambda: ""),
    )
    return cast(MultiKernelManager, kernels)


async def test_a_server_that_can_start_no_thread_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(readiness, "FRESH_SECONDS", 0.0)
    ready = Readiness(kernels_in(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        assert not await ready.check()
    assert "not ready: can't start new thread" in caplog.text
    assert await ready.check()


async def test_a_file_system_that_hangs_holds_up_no_probe_and_one_thread(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(readiness, "FRESH_SECONDS", 0.0)
    monkeypatch.setattr(readiness, "LOOK_SECONDS", 0.05)
    goes_on, looks = threading.Event(), []

    def hang() -> None:
        looks.append(threading.current_thread())
        goes_on.wait(30)

    ready = Readiness(kernels_in(tmp_path), hang)
    try:
        for _ in range(3):
            assert not await asyncio.wait_for(ready.check(), 10)
        assert [thread.daemon for thread in looks] == [True]
    finally:
        goes_on.set()
    await eventually(ready.check)
