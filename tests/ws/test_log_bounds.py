"""What a log keeps of far more output than its bounds, and what it says of the rest."""

from __future__ import annotations

import re
from functools import partial
from itertools import pairwise

from tests.conftest import MakeServer
from tests.support.channels import JupyterChannels
from tests.support.executions import Executions
from tests.support.processes import eventually, resident_memory
from tests.support.rest import RestClient

MEGABYTE = 2**20
SIZE = 2**20
AT_ONCE = 20  # what the server has not read yet is not the log's, and not measured here
KEPT_ON_DISK = 64 * MEGABYTE
SEGMENT = KEPT_ON_DISK // 4
MARGIN = 64 * MEGABYTE


async def has_ended(executions: Executions, execution_id: str) -> bool:
    (newest,) = await executions.listed(limit=1)
    return newest["id"] == execution_id and newest["ended"] is not None


async def test_far_more_than_is_kept_leaves_the_newest_and_the_exact_count_of_the_rest(
    make_server: MakeServer, full: bool
) -> None:
    """Half a gigabyte, or two."""
    count = (100 if full else 25) * AT_ONCE
    # Beside each flood the log has its request, two statuses, the code and the reply; and what the
    # server asks the kernel itself.
    beside = 12 * (count // AT_ONCE + 1)
    server = make_server("--log-bytes", str(KEPT_ON_DISK))
    async with RestClient(server.url, server.token) as rest:
        kernel = await rest.start_kernel("fake")
        executions = Executions(rest, kernel["id"])
        await executions.run("print before")
        before = resident_memory(server.pid)
        for _ in range(0, count, AT_ONCE):
            running = await executions.begin(f"flood {AT_ONCE} {SIZE}")
            await eventually(partial(has_ended, executions, running), 60)
        assert resident_memory(server.pid) - before < MARGIN

        late = await JupyterChannels.connect(
            server.ws_url, kernel["id"], server.token, query={"after": "0"}, log_length=1
        )
        gone = 0
        numbers: list[int] = []
        reached = ""
        while (reached, numbers[-1:]) != (running, [AT_ONCE]):
            message = await late.recv(30)
            if message.msg_type != "stream":
                continue
            if message.content["name"] == "stderr":
                found = re.search(r"(\d+) messages \((\d+) bytes\)", message.content["text"])
                assert found is not None
                gone += int(found[1])
                assert int(found[2]) > (int(found[1]) - beside) * SIZE * 0.8
            else:
                numbers.append(int(message.content["text"].split(maxsplit=1)[0]))
                reached = message.parent_id or ""
        # Nothing is missing but what is said to be gone.
        assert all(after == number % AT_ONCE + 1 for number, after in pairwise(numbers))
        missing = count - len(numbers)
        assert missing <= gone <= missing + beside
        assert len(numbers) * SIZE > KEPT_ON_DISK - SEGMENT - 2 * SIZE
        assert resident_memory(server.pid) - before < MARGIN
        await late.close()


async def test_an_execution_that_says_far_more_than_is_kept_ends_as_it_did(
    make_server: MakeServer,
) -> None:
    """The kernel is done long before its output is read, and has answered the server meanwhile."""
    server = make_server("--log-bytes", str(MEGABYTE))
    async with RestClient(server.url, server.token) as rest:
        kernel = await rest.start_kernel("fake")
        for _ in range(2):
            done = await Executions(rest, kernel["id"]).run("flood 10000 20000")
            assert (done["state"], done["reason"]) == ("ok", None)
