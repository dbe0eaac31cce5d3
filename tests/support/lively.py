"""What any kernel does, wherever it runs: it tells its process, asks for input, is interrupted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.support.channels import JupyterChannels
from tests.support.drill import Servers
from tests.support.executions import Executions
from tests.support.rest import RestClient, RestError
from tests.support.server import ServerProcess

__all__ = [
    "LINES",
    "RATE",
    "finished",
    "goes_on_alone",
    "has_printed_all",
    "is_idle_anew",
    "is_interrupted",
    "numbers",
    "pid_of",
    "prints",
    "says",
    "started",
    "takes_input",
]

LINES, RATE = 400, 50
"""How much a kernel prints in these tests, and how much of it in a second."""


@asynccontextmanager
async def started(servers: Servers) -> AsyncIterator[ServerProcess]:
    """A server; at the end the kernels of the one that is there then are ended, and so is it."""
    server = await asyncio.to_thread(servers.start)
    yield server
    assert servers.present is not None
    async with RestClient(servers.present.url, servers.present.token) as rest:
        for model in await rest.kernels():
            await rest.delete(model["id"])
    await asyncio.to_thread(servers.present.stop)
    servers.present = None


async def says(rest: RestClient, kernel_id: str, text: str) -> bool:
    """Whether this is in a kernel's reason."""
    model = await rest.kernel(kernel_id)
    assert text in model.get("reason", ""), model
    return True


async def finished(channels: JupyterChannels, asked: str) -> None:
    """Return when the reply to this request has come."""
    await channels.seen(lambda m: m.channel == "shell" and m.parent_id == asked, timeout=60)


def numbers(channels: JupyterChannels) -> list[int]:
    """The numbers that a kernel's flood has printed, in the order in which they came."""
    texts = [m.content["text"] for m in channels.log if m.msg_type == "stream"]
    return [int(line.split()[0]) for line in "".join(texts).splitlines() if line[:1].isdigit()]


async def prints(rest: RestClient, kernel_id: str) -> str:
    """A fake kernel has begun to print; returns the id of the execution."""
    runs = Executions(rest, kernel_id)
    printing = await runs.begin(f"flood {LINES} 20 {RATE}")
    await runs.until(printing, "stream")
    return printing


async def has_printed_all(server: ServerProcess, kernel_id: str, printing: str, pid: int) -> None:
    """What has printed was the first after `pid_of`, ends well, and is whole at who comes now."""
    async with RestClient(server.url, server.token) as rest:
        assert (await Executions(rest, kernel_id).ended(printing))["state"] == "ok"
        channels = await JupyterChannels.connect(
            server.ws_url, kernel_id, server.token, query={"after": "0"}
        )
        await channels.seen(
            lambda m: m.msg_type == "stream" and m.content["text"].startswith(f"{LINES} ")
        )
        assert numbers(channels) == [pid, *range(1, LINES + 1)]
        await channels.close()
        assert await pid_of(rest, kernel_id) == pid


async def pid_of(rest: RestClient, kernel_id: str) -> int:
    """The id of a fake kernel's process, as the kernel tells."""
    run = await Executions(rest, kernel_id).run("pid")
    return int(run["outputs"][0]["text"])


async def is_idle_anew(rest: RestClient, kernel_id: str) -> bool:
    """Whether a kernel is idle that was restarted after a death."""
    model = await rest.kernel(kernel_id)
    return bool(model.get("restarts")) and model["execution_state"] == "idle"


async def takes_input(server: ServerProcess, kernel_id: str) -> None:
    """A fake kernel asks for a line, gets the line, and goes on with it."""
    channels = await JupyterChannels.connect(server.ws_url, kernel_id, server.token)
    asked = await channels.send_execute("input name?", allow_stdin=True)
    prompt = await channels.seen(lambda m: m.msg_type == "input_request")
    await channels.answer(prompt, "Ada")
    await channels.seen(lambda m: m.msg_type == "stream" and "Ada" in m.content["text"])
    await channels.seen(lambda m: m.channel == "shell" and m.parent_id == asked)
    await channels.close()


async def is_interrupted(rest: RestClient, kernel_id: str) -> None:
    """What a fake kernel runs is ended by an interrupt, long before it would end itself."""
    runs = Executions(rest, kernel_id)
    sleeping = await runs.begin("sleep 60")
    await runs.until(sleeping, "started")
    await rest.interrupt(kernel_id)
    assert (await runs.ended(sleeping))["state"] == "error"


async def goes_on_alone(rest: RestClient, name: str, kernel_id: str) -> int:
    """A fake kernel works and restarts while its engine is away, and another of this kernelspec is
    not started; returns the id of its process then.
    """
    pid = await pid_of(rest, kernel_id)
    with pytest.raises(RestError) as raised:
        await rest.start_kernel(name)
    assert raised.value.error["code"] == "kernel_start_failed"
    assert raised.value.error["cause"] == "host_unreachable"
    assert await pid_of(rest, kernel_id) == pid
    await rest.restart(kernel_id)
    after = await pid_of(rest, kernel_id)
    assert after != pid
    return after
