"""What a kernel's process writes itself is told over HTTP.

The file is one that `app.managers.kernels.locating` finds.
"""

from __future__ import annotations

from tests.api.errors import error_of
from tests.support.executions import Executions
from tests.support.processes import eventually
from tests.support.rest import RestClient
from tests.support.running import KernelStarter

UNKNOWN = "11111111-2222-3333-4444-555555555555"


async def test_what_c_code_prints_is_told_as_inert_text(
    rest: RestClient, start: KernelStarter
) -> None:
    kernel = await start("fake")
    path = f"/api/kernels/{kernel.id}/process_output"
    await Executions(rest, kernel.id).run("raw <b>past all messages</b>")

    async def told() -> bool:
        return "past all messages" in (await rest.request("GET", path)).text

    await eventually(told, 30)
    answer = await rest.request("GET", path)
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-security-policy"] == "sandbox"


async def test_an_unknown_kernel_has_none(rest: RestClient) -> None:
    answer = await rest.request("GET", f"/api/kernels/{UNKNOWN}/process_output", 404)
    error_of(answer, 404, "kernel_not_found")
