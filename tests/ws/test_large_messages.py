"""Messages that are each larger than what is kept in memory, said as fast as a kernel can."""

from __future__ import annotations

import pytest

from tests.conftest import MakeServer
from tests.support.framing import FramingName
from tests.support.running import kernels_of

COUNT = 4
SIZE = 50 * 2**20  # bytes
TIMEOUT = 120.0


@pytest.mark.parametrize(("on_shutdown", "framing"), [("keep", "v1"), ("stop", "legacy")])
async def test_a_client_that_reads_gets_all(
    make_server: MakeServer, on_shutdown: str, framing: FramingName
) -> None:
    server = make_server("--on-shutdown", on_shutdown, "--orphan-timeout", "1")
    async with kernels_of(server) as start:
        kernel = await start("fake")
        channels = await kernel.connect(framing=framing, log_length=1)
        msg_id = await channels.send_execute(f"display {COUNT} {SIZE}")
        sizes, notices = [], []
        while True:
            message = await channels.recv(TIMEOUT)
            if message.msg_type == "display_data":
                sizes.append(len(message.content["data"]["text/plain"]))
            elif message.msg_type == "stream":
                notices.append(message.content["text"])
            # The reply comes through another socket, and may overtake the last of what is large.
            elif message.parent_id == msg_id and message.state == "idle":
                break
        assert (sizes, notices) == ([SIZE] * COUNT, [])
        await kernel.rest.delete(kernel.id)
