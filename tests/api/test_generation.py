"""A restart can be seen, and code can be asked to run in one process of the kernel only."""

from __future__ import annotations

import pytest

from tests.api.errors import error_of
from tests.support.executions import Executions
from tests.support.running import RunningKernel


async def died(kernel: RunningKernel) -> None:
    """Returns when the kernel has died while it was idle, and got another process."""
    await kernel.channels.send_execute("die 9")
    await kernel.told("restarting")
    await kernel.told("idle")


async def test_a_process_that_died_can_be_told_from_the_next(
    kernel: RunningKernel, executions: Executions
) -> None:
    assert (await kernel.model())["generation"] == 1
    before = await executions.run("print a")
    await died(kernel)
    assert (await kernel.model())["generation"] == 2
    failed = await executions.run("error NameError x")
    assert (before["generation"], failed["generation"]) == (1, 2)
    assert "restarted" in failed["reason"]
    assert (await executions.get(before["id"]))["generation"] == 1
    assert {one["generation"] for one in await executions.listed()} == {1, 2}


async def test_a_restart_that_was_asked_for_is_one_more(
    kernel: RunningKernel, executions: Executions
) -> None:
    response = await kernel.rest.http.post(f"/api/kernels/{kernel.id}/restart")
    assert response.json()["generation"] == 2
    assert (await executions.run("print a"))["generation"] == 2


async def test_code_for_a_process_that_is_gone_does_not_run(
    kernel: RunningKernel, executions: Executions
) -> None:
    query, headers = {"wait": 30}, {"If-Generation": "1"}
    response = await executions.post("print a", query=query, headers=headers)
    assert (response.status_code, response.json()["state"]) == (200, "ok")
    await died(kernel)
    known = await executions.listed()
    response = await executions.post("print a", query=query, headers=headers)
    assert "generation is 2" in error_of(response, 412, "generation_mismatch")
    assert await executions.listed() == known
    headers = {"If-Generation": "2"}
    response = await executions.post("print a", query=query, headers=headers)
    assert response.json()["state"] == "ok"


@pytest.mark.parametrize(
    "value", ["", "0", "-1", "+1", "1.0", "1_0", "one", "1, 2", '"1"', "9" * 99, "\u00b9"]
)
async def test_nonsense_is_no_generation(shared: Executions, value: str) -> None:
    response = await shared.post("print a", headers={"If-Generation": value.encode()})
    message = error_of(response, 400, "invalid_request")
    assert message.startswith("If-Generation: ")
