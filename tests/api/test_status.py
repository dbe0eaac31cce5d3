"""``/api`` and ``/api/status``, and what counts as activity.

These are the tests of `app.api.server`.
"""

from __future__ import annotations

import re
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from app import __version__
from app.api.server import replicas_of
from tests.support.rest import RestClient
from tests.support.running import KernelStarter


async def test_the_version(rest: RestClient) -> None:
    response = await rest.request("GET", "/api")
    assert response.json() == {"version": __version__}
    assert response.headers["Content-Type"] == "application/json"


async def test_the_status_s_form(rest: RestClient) -> None:
    status = (await rest.request("GET", "/api/status")).json()
    # Jupyter's, and no more where the server is the only one.
    assert list(status) == ["connections", "kernels", "last_activity", "started"]
    for name in ("last_activity", "started"):
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", status[name])
    assert status["started"] <= status["last_activity"]


@pytest.mark.parametrize(
    ("problem", "is_fresh", "states"),
    [
        (None, True, ["joined", "joined"]),
        (None, False, ["unknown", "unknown"]),
        ("declared dead", True, ["joined", "declared_dead"]),
        ("declared dead", False, ["unknown", "declared_dead"]),
    ],
)
def test_the_states_of_replicas(problem: str | None, is_fresh: bool, states: list[str]) -> None:
    directory = SimpleNamespace(addresses={"other": "unix:h:a"}, is_fresh=is_fresh)
    group: Any = SimpleNamespace(id="own", problem=lambda: problem, directory=directory)
    listing: Any = SimpleNamespace(by_replica=Counter({"other": 3}))
    found = replicas_of(group, listing)
    assert [(one.id, one.asked, one.kernels) for one in found] == [
        ("other", False, 3),
        ("own", True, 0),
    ]
    assert [one.state for one in found] == states
    directory.addresses["own"] = "unix:h:b"
    assert len(replicas_of(group, listing)) == 2


async def test_kernels_and_connections_are_counted(rest: RestClient, start: KernelStarter) -> None:
    first, second = await start("fake"), await start("fake")
    await second.connect()
    status = await rest.status()
    assert (status["kernels"], status["connections"]) == (2, 3)
    await rest.delete(first.id)
    status = await rest.status()
    assert (status["kernels"], status["connections"]) == (1, 2)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/status", 200),
        ("/api", 200),
        ("/docs", 200),
        ("/openapi.json", 200),
        ("/api/kernels?no_track_activity", 200),
        ("/api/kernels?no_track_activity=0", 200),
        ("/api/kernelspecs?no_track_activity=1", 200),
        ("/api/kernels/none-such?no_track_activity=1", 404),
        ("/api/none-such", 404),
    ],
)
async def test_looking_on_is_no_activity(rest: RestClient, path: str, status: int) -> None:
    before = await rest.status()
    await rest.request("GET", path, status)
    assert await rest.status() == before


@pytest.mark.parametrize("path", ["/api/kernels", "/api/kernelspecs", "/api/kernelspecs/fake"])
async def test_use_of_the_api_is_activity(rest: RestClient, path: str) -> None:
    before = await rest.status()
    await rest.request("GET", path)
    assert (await rest.status())["last_activity"] > before["last_activity"]


async def test_use_without_the_token_is_no_activity(rest: RestClient) -> None:
    before = await rest.status()
    await rest.request("GET", "/api/kernels", 403, headers={"Authorization": "token wrong"})
    assert await rest.status() == before


async def test_an_execution_is_activity_of_its_kernel_and_of_the_server(
    rest: RestClient, start: KernelStarter
) -> None:
    kernel = await start("fake")
    before = await kernel.model()
    await kernel.channels.execute("print a")
    after = await kernel.model()
    assert after["last_activity"] > before["last_activity"]
    assert (await rest.status())["last_activity"] >= after["last_activity"]


@pytest.mark.parametrize("channel", ["shell", "control"])
async def test_questions_to_an_idle_kernel_are_no_activity_of_it(
    start: KernelStarter, channel: str
) -> None:
    kernel = await start("fake")
    before = await kernel.model()
    await kernel.channels.request("kernel_info_request", channel=channel)
    await kernel.channels.request("comm_info_request", channel=channel)
    assert await kernel.model() == before
