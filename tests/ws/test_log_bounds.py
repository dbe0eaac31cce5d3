"""What a log keeps of far more output than its bounds, and what it says of the rest."""

from __future__ import annotations

import re

import pytest

from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.processes import resident_memory
from tests.support.rest import RestClient

MEGABYTE = 2**20
COUNT = 2000
SIZE = 2**20
RATE = 150  # a second: what the server has not read yet is not the log's, and not measured here
KEPT_ON_DISK = 256 * MEGABYTE
MARGIN = 64 * MEGABYTE


@pytest.mark.timeout(240)
async def test_two_gigabytes_leave_the_newest_and_the_exact_count_of_the_rest(
    make_server: MakeServer,
) -> None:
    server = make_server("--log-bytes", str(16 * MEGABYTE), "--log-disk-bytes", str(KEPT_ON_DISK))
    async with RestClient(server.url, server.token) as rest:
        kernel = await rest.start_kernel("fake")
        channels = await JupyterChannels.connect(server.ws_url, kernel["id"], server.token)
        await channels.execute("print before")
        before = resident_memory(server.pid)
        await channels.send_execute(f"flood {COUNT} {SIZE} {RATE}")
        await channels.collect_until(lambda message: message.state == "busy", 20)
        await channels.close()
        await rest.wait_for_state(kernel["id"], "idle", timeout=180)
        assert resident_memory(server.pid) - before < MARGIN

        late = await JupyterChannels.connect(
            server.ws_url, kernel["id"], server.token, query={"after": "0"}, log_length=1
        )
        gone = 0
        numbers: list[int] = []
        while not numbers or numbers[-1] < COUNT:
            message = await late.recv(30)
            if message.msg_type != "stream":
                continue
            if message.content["name"] == "stderr":
                found = re.search(r"(\d+) messages \((\d+) bytes\)", message.content["text"])
                assert found is not None
                # More than one if the disk still moved on while this client read.
                gone += int(found[1])
                assert int(found[2]) > int(found[1]) * SIZE * 0.9
            else:
                numbers.append(int(message.content["text"].split(maxsplit=1)[0]))
        # Nothing is missing but what is said to be gone.
        assert numbers == sorted(set(numbers))
        missing = COUNT - len(numbers)
        assert missing <= gone <= missing + 20  # status and input messages count too
        assert len(numbers) * SIZE > KEPT_ON_DISK - 16 * MEGABYTE
        assert resident_memory(server.pid) - before < MARGIN
        await late.close()
