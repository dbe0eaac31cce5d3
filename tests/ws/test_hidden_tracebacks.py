"""With ``--no-allow-tracebacks`` nothing of where an error was raised reaches a client.

The kernel is a real ipykernel, and the errors come from a module whose name, lines and exceptions
no other text has: they are looked for in every message of every channel. Without the option they
are there, so that the search is known to find them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.conftest import servers
from tests.support.channels import JupyterChannels
from tests.support.processes import eventually
from tests.support.running import RunningKernel
from tests.support.server import ServerProcess
from tests.support.shared import lasting_kernel

REPLACEMENT = "Ask the operator."
HIDDEN = {"ename": "ExecutionError", "evalue": "Execution error", "traceback": [REPLACEMENT]}

# None of these words is ever in the code of a cell, which every client is shown.
SECRETS = ("quetzal_9137", "axolotl_4711", "OkapiError", "tapir_2001")

MODULE = """
class OkapiError(Exception):
    pass

def fail():
    raise OkapiError("tapir_2001")  # axolotl_4711

def wait():
    import time
    print("waiting", flush=True)
    while True:
        time.sleep(0.01)  # axolotl_4711

def crash():
    import ctypes, faulthandler, sys, threading
    def read_nowhere():
        ctypes.string_at(0)  # axolotl_4711
    faulthandler.enable(file=sys.stderr, all_threads=False)
    # A thread, so that the traceback is short enough to be in the last words.
    thread = threading.Thread(target=read_nowhere)
    thread.start()
    thread.join()
"""
BROKEN_MODULE = "x = = 'tapir_2001'  # axolotl_4711\n"

GET_MODULE = 'module = __import__("quetzal" + "_9137")'


class Watched(NamedTuple):
    """A kernel, and two clients (one in each framing) that see what it says."""

    server: ServerProcess
    kernel: RunningKernel
    clients: tuple[JupyterChannels, JupyterChannels]
    allowed: bool

    async def shown(self) -> bool:
        """Whether any client, or REST, was told any of the secrets."""
        told = "".join(str([*channels.log]) for channels in self.clients)
        told += str(await self.kernel.rest.kernels())
        return any(secret in told for secret in SECRETS)


@pytest.fixture(scope="module", params=[True, False], ids=["allowed", "not allowed"])
def allowed(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest, allowed: bool) -> Iterator[ServerProcess]:
    options = [] if allowed else ["--no-allow-tracebacks"]
    with servers(request.config) as make_server:
        server = make_server(*options, "--traceback-replacement-message", REPLACEMENT)
        (server.home.root_dir / "quetzal_9137.py").write_text(MODULE)
        (server.home.root_dir / "quetzal_9137_broken.py").write_text(BROKEN_MODULE)
        yield server


@pytest.fixture(scope="module")
def shared_kernel(server: ServerProcess) -> Iterator[str]:
    with lasting_kernel(server, "python3") as kernel_id:
        yield kernel_id


@pytest.fixture
async def watched(kernel: RunningKernel, server: ServerProcess, allowed: bool) -> Watched:
    clients = (kernel.channels, await kernel.connect(framing="v1"))
    await kernel.channels.execute(GET_MODULE)
    return Watched(server, kernel, clients, allowed)


async def test_an_error_in_an_imported_function(watched: Watched) -> None:
    first, second = watched.clients
    exchange = await first.execute("module.fail()")
    seen_by_other = await second.exchange(exchange.msg_id, replies=False)
    assert await watched.shown() is watched.allowed
    assert exchange.reply["status"] == "error"
    assert exchange.reply["execution_count"] >= 2
    if not watched.allowed:
        assert exchange.error == seen_by_other.error == HIDDEN
        assert exchange.reply.items() >= HIDDEN.items()
        # And the kernel goes on.
        assert (await first.execute("6 * 7")).result == "42"


async def test_an_error_in_a_user_expression(watched: Watched) -> None:
    exchange = await watched.clients[0].execute(
        "x = 1", user_expressions={"bad": "module.fail()", "good": "x + 1"}
    )
    assert await watched.shown() is watched.allowed
    expressions = exchange.reply["user_expressions"]
    assert exchange.reply["status"] == "ok"
    assert expressions["good"]["data"]["text/plain"] == "2"
    assert expressions["bad"]["status"] == "error"
    if not watched.allowed:
        assert expressions["bad"] == {"status": "error", **HIDDEN}


async def test_a_silent_execution_that_fails(watched: Watched) -> None:
    exchange = await watched.clients[0].execute("module.fail()", silent=True, store_history=False)
    assert await watched.shown() is watched.allowed
    assert exchange.reply["status"] == "error"


async def test_a_module_that_cannot_be_compiled(watched: Watched) -> None:
    exchange = await watched.clients[0].execute('__import__("quetzal" + "_9137_broken")')
    assert exchange.reply["status"] == "error"
    assert await watched.shown() is watched.allowed


async def test_an_interrupt(watched: Watched) -> None:
    channels = watched.clients[0]
    request = await channels.send_execute("module.wait()")
    await channels.seen(lambda m: m.parent_id == request and m.msg_type == "stream")
    await watched.kernel.rest.interrupt(watched.kernel.id)
    exchange = await channels.exchange(request)
    assert exchange.reply["status"] == "error"
    assert await watched.shown() is watched.allowed


async def test_a_crash_of_the_interpreter(watched: Watched) -> None:
    """Its last words are a traceback: in the kernel's log they stay."""
    channels = watched.clients[0]
    exchange = await channels.execute("module.crash()")
    await channels.collect_until(lambda m: m.state == "idle" and not m.parent_header)
    assert exchange.error["ename"] == "KernelDied"
    assert "SIGSEGV" in exchange.error["evalue"]
    assert "SIGSEGV" in (await watched.kernel.model())["restarts"]["reason"]
    assert await watched.shown() is watched.allowed
    await eventually(lambda: "quetzal_9137" in watched.server.output())


async def test_what_a_program_itself_prints_is_its_own_business(watched: Watched) -> None:
    code = "import traceback\ntry: module.fail()\nexcept Exception: traceback.print_exc()"
    exchange = await watched.clients[0].execute(code)
    assert exchange.reply["status"] == "ok"
    assert "quetzal_9137" in exchange.stream("stderr")
