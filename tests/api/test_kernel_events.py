"""What has happened to a kernel is told to whoever looks later."""

from __future__ import annotations

from typing import Any

from tests.support.executions import Executions
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.running import KernelStarter


async def events_of(rest: RestClient, kernel_id: str) -> list[dict[str, Any]]:
    path = f"/api/kernels/{kernel_id}/events"
    listed: list[dict[str, Any]] = (await rest.request("GET", path)).json()
    return listed


async def test_the_latest_events_are_listed(start: KernelStarter) -> None:
    kernel = await start("fake")
    names = [event["event"] for event in await events_of(kernel.rest, kernel.id)]
    assert sorted(names) == ["ready", "start"]
    await kernel.rest.interrupt(kernel.id)
    await Executions(kernel.rest, kernel.id).begin("die 3")

    async def came_back() -> bool:
        model = await kernel.model()
        return (model["generation"], model["execution_state"]) == (2, "idle")

    await eventually(came_back, 30)
    events = await events_of(kernel.rest, kernel.id)
    (died,) = [event for event in events if event["event"] == "automatic_restart"]
    assert died["at"].endswith("Z")
    assert died["details"] == {"reason": "The kernel's process exited with code 3", "count": 1}
    assert "interrupt" in [event["event"] for event in events]
    assert [event["at"] for event in events] == sorted((one["at"] for one in events), reverse=True)


async def test_there_is_a_most_and_the_oldest_are_forgotten(start: KernelStarter) -> None:
    kernel = await start("fake")
    for _ in range(51):
        await kernel.rest.interrupt(kernel.id)
    events = await events_of(kernel.rest, kernel.id)
    assert [event["event"] for event in events] == ["interrupt"] * 50


async def test_a_kernel_that_there_is_not(rest: RestClient) -> None:
    nobody = "00000000-0000-4000-8000-000000000000"
    await rest.request("GET", f"/api/kernels/{nobody}/events", 404)
