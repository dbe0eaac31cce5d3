"""Outputs larger than what is kept in memory: there over HTTP, or announced to the byte."""

from __future__ import annotations

from base64 import b64decode

import pytest

from tests.conftest import MakeServer
from tests.support.executions import Executions
from tests.support.rest import RestClient
from tests.support.running import KernelStarter

LARGEST = 200_000_000
LARGE = 70_000_000
"""What CI is content with: it is beyond every bound on what is held, as `LARGEST` is."""

PRINT = "print('a' * {size})"
IMAGE = "display({{'image/png': 'A' * {size}, 'text/plain': 'figure'}}, raw=True)"


@pytest.mark.parametrize("size", [17_000_000, LARGEST])
async def test_a_print_and_an_image_are_there(start: KernelStarter, size: int, full: bool) -> None:
    if size == LARGEST and not full:
        size = LARGE
    kernel = await start("python3")
    executions = Executions(kernel.rest, kernel.id)
    # One after the other: the disk has room for one of the largest.
    ended = await executions.run(PRINT.format(size=size))
    assert (ended["state"], ended["gap"]) == ("ok", None)
    assert ended["outputs"][0]["output_type"] == "stream"
    path = f"{executions.path}/{ended['id']}/outputs/0"
    text = await kernel.rest.request("GET", path)
    assert text.content == b"a" * size + b"\n"

    ended = await executions.run(IMAGE.format(size=size))
    assert (ended["state"], ended["gap"]) == ("ok", None)
    assert ended["outputs"][0]["output_type"] == "display_data"
    path = f"{executions.path}/{ended['id']}/outputs/0"
    image = await kernel.rest.request("GET", path, params={"mime": "image/png"})
    assert image.content == b64decode("A" * size)


async def test_what_is_larger_than_all_bounds_is_announced(make_server: MakeServer) -> None:
    size = 17_000_000
    server = make_server("--log-bytes", "2000000")
    async with RestClient(server.url, server.token) as rest:
        kernel_id = (await rest.start_kernel("fake"))["id"]
        ended = await Executions(rest, kernel_id).run(f"huge {size}\nprint after")
        assert ended["state"] == "ok"
        assert [output["text"] for output in ended["outputs"]] == ["after\n"]
        gap = ended["gap"]
        assert gap["messages"] >= 1
        assert size < gap["bytes"] < size + 5000
        await rest.delete(kernel_id)
