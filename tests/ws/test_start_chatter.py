"""What a kernel says while it starts is kept in its log, and is the output of nobody's code."""

from __future__ import annotations

from tests.support.executions import Executions
from tests.support.framing import FramingName
from tests.support.kernelspecs import Spec, write_kernelspec
from tests.support.running import KernelStarter, RunningKernel
from tests.support.server import ServerProcess

CHATTER = "a debugger warns"


async def logged(kernel: RunningKernel) -> list[str | None]:
    """For whom each piece of the chatter is in the log."""
    response = await kernel.rest.request("GET", f"/api/kernels/{kernel.id}/messages")
    return [
        message["session"]
        for message in response.json()["messages"]
        if message["content"].get("text") == f"{CHATTER}\n"
    ]


async def test_it_goes_to_no_client_and_into_no_output(
    server: ServerProcess, start: KernelStarter, framing: FramingName
) -> None:
    write_kernelspec(server.home.jupyter_path, "chatty", Spec(flags=("--chatter", CHATTER)))
    kernel = await start("chatty", ready=False)
    early = await kernel.channels.execute("print early")
    whole = await kernel.connect(framing=framing, query={"after": "0"})
    executions = Executions(kernel.rest, kernel.id)
    assert [output["text"] for output in (await executions.run("print late"))["outputs"]] == [
        "late\n"
    ]
    await kernel.rest.restart(kernel.id)
    last = await whole.execute("print last")
    assert (early.text, last.text) == ("early\n", "last\n")
    for channels in (kernel.channels, whole):
        await channels.seen(lambda m: m.parent_id == last.msg_id and m.state == "idle")
        assert CHATTER not in str([message.content for message in channels.log])
    assert await logged(kernel) == ["", ""]  # of both processes


async def test_what_a_kernel_says_unasked_when_it_is_ready_goes_to_all(
    start: KernelStarter,
) -> None:
    kernel = await start("fake")
    late = await kernel.connect()
    await kernel.channels.execute("background 3 0.05")
    await late.seen(lambda m: m.content.get("text") == "background 3\n")


async def test_pydevd_does_not_warn_of_frozen_modules(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("python3")
    code = "import os; print(os.environ['PYDEVD_DISABLE_FILE_VALIDATION'])"
    assert (await kernel.channels.execute(code)).text == "1\n"
    response = await kernel.rest.request("GET", f"/api/kernels/{kernel.id}/messages")
    assert "frozen modules" not in response.text
    # Whoever wants to be warned says so.
    other = await start("python3", env={"PYDEVD_DISABLE_FILE_VALIDATION": "0"})
    assert (await other.channels.execute(code)).text == "0\n"
