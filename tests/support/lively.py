"""What any kernel does, wherever it runs: it tells its process, asks for input, is interrupted."""

from __future__ import annotations

from tests.support.channels import JupyterChannels
from tests.support.executions import Executions
from tests.support.rest import RestClient
from tests.support.server import ServerProcess

__all__ = ["is_idle_anew", "is_interrupted", "pid_of", "takes_input"]


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
