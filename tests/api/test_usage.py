"""What a kernel uses of the machine, as clients are told (`app.managers.kernels.measuring`)."""

from __future__ import annotations

import os

from tests.api.errors import error_of
from tests.conftest import MakeServer
from tests.support.executions import Executions
from tests.support.identities import token
from tests.support.metrics import scrape
from tests.support.rest import RestClient
from tests.support.running import KernelStarter

UNKNOWN = "11111111-2222-3333-4444-555555555555"


async def test_a_kernel_tells_what_it_uses(rest: RestClient, start: KernelStarter) -> None:
    kernel = await start("fake")
    before = (await rest.request("GET", f"/api/kernels/{kernel.id}/usage")).json()
    await Executions(rest, kernel.id).post("print twenty", query={"wait": 30})
    after = (await rest.request("GET", f"/api/kernels/{kernel.id}/usage")).json()

    assert before["kernel_id"] == kernel.id
    assert before["pid"] == await kernel.pid()
    assert before["memory_kind"] == "pss"
    assert before["memory"] > 2**20
    assert before["cpu_seconds"] > 0
    assert (before["cpu"], before["processes"], before["limits"]) == (None, 1, {})
    assert before["threads"] >= 1
    assert before["open_files"] >= 3
    assert "history" not in before or before["history"] is None
    assert after["executions"] == before["executions"] + 1
    assert after["messages"] > before["messages"]
    assert after["bytes_said"] > before["bytes_said"] + 100


async def test_its_past_is_told_on_demand(rest: RestClient, start: KernelStarter) -> None:
    kernel = await start("fake")
    path = f"/api/kernels/{kernel.id}/usage"
    told = (await rest.request("GET", path, params={"history": "false"})).json()
    assert told.get("history") is None
    await rest.request("GET", path, 400, params={"history": "some"})
    told = (await rest.request("GET", path, params={"history": "true"})).json()
    (point,) = told["history"]
    assert point["messages"] > 0
    assert point == {
        "at": told["at"],
        "cpu": None,
        "memory": told["memory"],
        "messages": point["messages"],
    }


async def test_jupyterlabs_extension_is_told_in_its_form(
    rest: RestClient, start: KernelStarter
) -> None:
    kernel = await start("fake")
    path = f"/api/metrics/v1/kernel_usage/get_usage/{kernel.id}"
    told = (await rest.request("GET", path)).json()
    content = told["content"]
    assert told["kernel_id"] == kernel.id
    assert "reason" not in content
    assert content["kernel_memory"] > 2**20
    assert content["kernel_cpu"] >= 0
    assert content["cpu_count"] == os.cpu_count()
    assert content["host_usage_flag"] is False
    assert {"hostname", "pid"} <= content.keys()


async def test_a_dead_kernel_uses_nothing(make_server: MakeServer) -> None:
    server = make_server("--no-autorestart")
    async with RestClient(server.url, server.token) as rest:
        kernel = await rest.start_kernel("fake")
        await rest.wait_for_state(kernel["id"], "idle")
        usage = (await rest.request("GET", f"/api/kernels/{kernel['id']}/usage")).json()
        os.kill(usage["pid"], 9)
        await rest.wait_for_state(kernel["id"], "dead")
        told = await rest.request("GET", f"/api/metrics/v1/kernel_usage/get_usage/{kernel['id']}")
        dead = (await rest.request("GET", f"/api/kernels/{kernel['id']}/usage")).json()
    assert (dead["pid"], dead["memory"], dead["processes"]) in (
        (None, None, None),
        (usage["pid"], usage["memory"], usage["processes"]),  # within a second
    )
    assert told.status_code == 200


async def test_a_kernel_that_is_not_there_uses_nothing(rest: RestClient) -> None:
    for path in (
        f"/api/kernels/{UNKNOWN}/usage",
        f"/api/metrics/v1/kernel_usage/get_usage/{UNKNOWN}",
    ):
        error_of(await rest.http.get(path), 404, "kernel_not_found")


async def test_sums_by_owner_are_told_where_an_option_says_so(make_server: MakeServer) -> None:
    server = make_server(
        *("--identity-provider-class", "tests.support.identities:Telling", "--metrics-by-owner")
    )
    anna = token("anna", ["kernels:write", "kernels:execute"])
    async with (
        RestClient(server.url, anna) as rest,
        RestClient(server.url, server.token) as admin,
    ):
        kernel = await rest.start_kernel("fake")
        await rest.wait_for_state(kernel["id"], "idle")
        metrics = await scrape(admin)
    assert metrics("kernelkeep_owner_kernels", owner="anna") == 1
    assert metrics("kernelkeep_owner_memory_bytes", owner="anna") > 2**20
    assert metrics("kernelkeep_owner_processes", owner="anna") == 1
    assert metrics("kernelkeep_owner_cpus", owner="anna") == 0


async def test_no_owner_is_named_otherwise(rest: RestClient, start: KernelStarter) -> None:
    await start("fake")
    assert not [name for name in (await scrape(rest)).names if "owner" in name]
