"""The same checks against kernels of several makers: what a client can rely on is the same.

ipykernel, bash_kernel and xeus-python come from PyPI, as people install them. xeus-python knows
only tcp and ends its process at SIGINT; bash_kernel has no results and asks no questions.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from uuid import NAMESPACE_URL, uuid5

import pytest

from tests.conftest import servers
from tests.support.channels import Connector, Exchange, JupyterChannels
from tests.support.framing import FramingName
from tests.support.kernelspecs import Spec
from tests.support.processes import children, eventually, is_alive
from tests.support.rest import RestClient
from tests.support.running import KernelStarter, RunningKernel
from tests.support.server import ServerProcess

TIMEOUT = 60.0


@dataclass(frozen=True)
class Language:
    """A kernelspec, and how things are said to its kernels."""

    spec: str
    implementation: str
    language: str
    greet: str  # prints "hello" and a newline
    assign: str  # gives x a value
    tell: str  # prints the value of x, 41; if there is none, an empty line or an error
    fail: str  # ends with an error
    ename: str  # a part of that error's name
    wait: str  # prints "begun", then runs without end
    prefix: str  # of "match", to be completed
    match: str
    result: str | None = None  # has the result 42
    ask: str | None = None  # prints the answer to a question
    interrupted: str = "error"  # status of the reply to an execution that is interrupted

    @property
    def kernel_id(self) -> str:
        """The same for every test: asked for again, it is the same kernel."""
        return str(uuid5(NAMESPACE_URL, self.spec))


PYTHON = Language(
    spec="python3",
    implementation="ipython",
    language="python",
    greet="print('hello')",
    assign="x = 41",
    tell="print(x)",
    fail="1 / 0",
    ename="ZeroDivisionError",
    wait="print('begun', flush=True)\nwhile True: pass",
    prefix="pri",
    match="print",
    result="6 * 7",
    ask="print(input('name?'))",
)
BASH = Language(
    spec="bash",
    implementation="bash_kernel",
    language="bash",
    greet="echo hello",
    assign="x=41",
    tell="echo $x",
    fail="false",
    ename="",
    wait="echo begun; sleep 600",
    prefix="ech",
    match="echo",
    interrupted="abort",
)
XEUS = replace(PYTHON, spec="xpython", implementation="xeus-python", interrupted="aborted")
BY_MESSAGE = replace(PYTHON, spec="python3-message")
LANGUAGES = [PYTHON, BASH, XEUS, BY_MESSAGE]

SPECS = {
    "bash": Spec(
        argv=(sys.executable, "-m", "bash_kernel", "-f", "{connection_file}"),
        # As `python -m bash_kernel.install` writes it.
        env={"PS1": "$"},
        fields={"display_name": "Bash", "language": "bash", "codemirror_mode": "shell"},
    ),
    "python3-message": Spec(
        argv=(sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"),
        interrupt_mode="message",
        fields={"language": "python"},
    ),
}


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    for module, package in (("bash_kernel", "bash_kernel"), ("xpython", "xeus-python")):
        assert find_spec(module), f"missing: {sys.executable} -m pip install {package}"
    with servers(request.config) as make_server:
        yield make_server(specs=SPECS)


@pytest.fixture(params=LANGUAGES, ids=lambda language: language.spec)
def language(request: pytest.FixtureRequest) -> Language:
    chosen: Language = request.param
    return chosen


@pytest.fixture
async def kernel(rest: RestClient, connect: Connector, language: Language) -> RunningKernel:
    """A kernel that the tests of one language share."""
    await rest.start_kernel(language.spec, kernel_id=language.kernel_id)
    channels = await connect(language.kernel_id)
    await rest.wait_for_state(language.kernel_id, "idle", timeout=TIMEOUT)
    return RunningKernel(language.kernel_id, rest, connect, channels)


def is_whole(exchange: Exchange, status: str = "ok") -> bool:
    """Busy, the code, then what came of it, one reply and idle."""
    messages = exchange.messages
    iopub = [message for message in messages if message.channel == "iopub"]
    assert iopub[0].state == "busy"
    assert iopub[-1].state == "idle"
    assert exchange.states == ["busy", "idle"]
    assert len(exchange.of_type("execute_input")) == 1
    assert exchange.reply["status"] == status
    return True


async def test_it_tells_of_itself(kernel: RunningKernel, language: Language) -> None:
    model = await kernel.model()
    assert model["name"] == language.spec
    assert "reason" not in model
    for channel in ("shell", "control"):
        exchange = await kernel.channels.request(
            "kernel_info_request", channel=channel, timeout=TIMEOUT
        )
        assert exchange.reply["implementation"] == language.implementation
        assert exchange.reply["language_info"]["name"] == language.language
        assert exchange.replies[0].channel == channel


async def test_an_execution_and_its_output(
    kernel: RunningKernel, language: Language, framing: FramingName
) -> None:
    channels = await kernel.connect(framing=framing)
    first = (await channels.execute(language.greet, timeout=TIMEOUT)).reply["execution_count"]
    for count in (first + 1, first + 2):
        exchange = await channels.execute(language.greet, timeout=TIMEOUT)
        assert is_whole(exchange)
        assert exchange.text == "hello\n"
        assert exchange.reply["execution_count"] == count
    # Another client sees the same output, and no reply.
    seen = await kernel.channels.exchange(exchange.msg_id, replies=False)
    assert seen.text == "hello\n"
    assert seen.replies == []
    if language.result is not None:
        exchange = await channels.execute(language.result, timeout=TIMEOUT)
        assert is_whole(exchange)
        assert exchange.result == "42"


async def test_an_error(kernel: RunningKernel, language: Language) -> None:
    channels = kernel.channels
    exchange = await channels.execute(language.fail, timeout=TIMEOUT)
    assert is_whole(exchange, "error")
    assert language.ename in exchange.error["ename"]
    assert exchange.reply["ename"] == exchange.error["ename"]
    assert exchange.reply["evalue"] == exchange.error["evalue"]
    assert (await channels.execute(language.greet, timeout=TIMEOUT)).text == "hello\n"


async def test_a_question(kernel: RunningKernel, language: Language, framing: FramingName) -> None:
    channels = await kernel.connect(framing=framing)
    if language.ask is None:
        info = await channels.request("kernel_info_request", timeout=TIMEOUT)
        assert info.reply["implementation"] == "bash_kernel"  # no other cannot ask
        return
    exchange = await channels.execute(language.ask, answers=["Ada"], timeout=TIMEOUT)
    assert is_whole(exchange)
    assert exchange.text == "Ada\n"
    (question,) = exchange.of_type("input_request")
    assert (question.channel, question.content["prompt"]) == ("stdin", "name?")
    # Only who asked is asked.
    await kernel.channels.exchange(exchange.msg_id, replies=False)
    assert not any(message.channel == "stdin" for message in kernel.channels.log)


async def test_a_completion(kernel: RunningKernel, language: Language) -> None:
    content = {"code": language.prefix, "cursor_pos": len(language.prefix)}
    exchange = await kernel.channels.request("complete_request", content, timeout=TIMEOUT)
    assert exchange.reply["status"] == "ok"
    assert language.match in [match.rstrip("(") for match in exchange.reply["matches"]]
    assert (exchange.reply["cursor_start"], exchange.reply["cursor_end"]) == (0, 3)


async def test_an_execution_over_http(kernel: RunningKernel, language: Language) -> None:
    path = f"/api/kernels/{kernel.id}/executions?wait=30"
    response = await kernel.rest.request("POST", path, json={"code": language.greet})
    execution = response.json()
    assert execution["state"] == "ok"
    assert [output["text"] for output in execution["outputs"]] == ["hello\n"]


async def begin(channels: JupyterChannels, language: Language) -> str:
    """Starts an execution without end; its id, when it has begun."""
    request = await channels.send_execute(language.wait)
    await channels.seen(
        lambda m: m.parent_id == request and "begun" in m.content.get("text", ""), TIMEOUT
    )
    return request


async def test_an_interrupt(start: KernelStarter, language: Language) -> None:
    kernel = await start(language.spec)
    channels = kernel.channels
    await channels.execute(language.assign, timeout=TIMEOUT)
    request = await begin(channels, language)
    await kernel.becomes("busy")
    await kernel.rest.interrupt(kernel.id)
    exchange = await channels.exchange(request, timeout=TIMEOUT)
    assert exchange.reply["status"] == language.interrupted
    await kernel.becomes("idle")
    if language is XEUS:
        await the_process_has_been_replaced(kernel, channels, exchange)
        return
    # It was the execution that ended, and not the kernel.
    exchange = await channels.execute(language.tell, timeout=TIMEOUT)
    assert exchange.text == "41\n"
    assert "reason" not in await kernel.model()


async def the_process_has_been_replaced(
    kernel: RunningKernel, channels: JupyterChannels, exchange: Exchange
) -> None:
    """xeus-python from PyPI ends at SIGINT: that is said, and a new process is there."""
    assert exchange.error["ename"] == "KernelDied"
    assert "exited with code 0" in exchange.error["evalue"]
    assert exchange.messages[-1].state == "idle"
    await channels.seen(lambda m: m.state == "restarting", TIMEOUT)
    exchange = await channels.execute(XEUS.greet, timeout=TIMEOUT)
    assert exchange.text == "hello\n"
    assert exchange.reply["execution_count"] == 1
    assert "exited with code 0" in (await kernel.model())["restarts"]["reason"]
    assert (await channels.execute(XEUS.tell, timeout=TIMEOUT)).error["ename"]  # x is gone


async def test_a_restart(start: KernelStarter, language: Language) -> None:
    kernel = await start(language.spec)
    channels = kernel.channels
    await channels.execute(language.assign, timeout=TIMEOUT)
    assert (await channels.execute(language.tell, timeout=TIMEOUT)).text == "41\n"
    model = await kernel.rest.restart(kernel.id)
    assert (model["id"], model["name"]) == (kernel.id, language.spec)
    # What is sent at once waits for the new process.
    exchange = await channels.execute(language.greet, timeout=TIMEOUT)
    assert exchange.text == "hello\n"
    assert exchange.reply["execution_count"] == 1
    assert "41" not in (await channels.execute(language.tell, timeout=TIMEOUT)).text
    assert "reason" not in await kernel.model()


async def test_a_shutdown_while_it_runs_something(
    server: ServerProcess, start: KernelStarter, language: Language
) -> None:
    before = {process.pid for process in children(server.pid)}
    kernel = await start(language.spec)
    channels = await kernel.connect()
    await begin(channels, language)
    # The shells of bash_kernel are among them.
    started = {process.pid for process in children(server.pid)} - before
    assert started
    await kernel.rest.delete(kernel.id)
    for client in (channels, kernel.channels):
        assert (await client.closed()).code == 4404
        assert client.log[-1].state == "dead"
    await kernel.rest.request("GET", f"/api/kernels/{kernel.id}", 404)
    await eventually(lambda: not any(is_alive(pid) for pid in started))


async def test_the_kernelspec_that_xeus_python_installs_is_found(start: KernelStarter) -> None:
    model = await start.rest.kernelspec("xpython")
    assert model["spec"]["argv"][0].startswith("python")  # whichever runs the service
    assert model["spec"]["language"] == "python"
    logo = await start.rest.request("GET", model["resources"]["logo-64x64"])
    assert logo.headers["Content-Type"] == "image/png"
