"""Why a kernel is dead, in the words of real kernels that end in every way that there is."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.conftest import servers
from tests.support.kernelspecs import FAKE_SPECS, Spec, write_kernelspec
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess


@pytest.fixture(scope="module", params=["keep", "stop"])
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server("--on-shutdown", request.param, "--no-autorestart", specs=FAKE_SPECS)


@pytest.fixture
async def start(server: ServerProcess) -> AsyncIterator[KernelStarter]:
    async with kernels_of(server) as starter:
        yield starter


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os; os._exit(7)", "exited with code 7"),
        ("import ctypes; ctypes.string_at(0)", "was killed by signal 11 (SIGSEGV)"),
        ("import os; os.abort()", "was killed by signal 6 (SIGABRT)"),
        ("import os; os.kill(os.getpid(), 9)", "was killed by signal 9 (SIGKILL)"),
        (
            # As the C library does, past the kernel's own capture of what is printed.
            "import sys, os; os.write(sys.stderr._original_stdstream_copy, b'out of paper\\n'); "
            "os._exit(5)",
            "exited with code 5. The last it wrote:\nout of paper",
        ),
    ],
)
async def test_a_python_kernel_that_dies_says_no_more_than_that(
    start: KernelStarter, code: str, reason: str
) -> None:
    kernel = await start("python3")
    await kernel.channels.send_execute(code)

    model = await kernel.becomes("dead")

    assert model["reason"] == f"The kernel's process {reason}"
    await kernel.rest.delete(kernel.id)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-m", "ipykernel_of_nobody"], "No module named ipykernel_of_nobody"),
        (
            ["-c", "import ipykernel_of_nobody"],
            "\nModuleNotFoundError: No module named 'ipykernel_",
        ),
        (["-c", "import sys; sys.exit('no licence')"], "\nno licence"),
        (
            ["-c", "def start():\n    raise RuntimeError('no licence')\nstart()"],
            "\nRuntimeError: no l",
        ),
        (
            ["-X", "faulthandler", "-c", "import ctypes; ctypes.string_at(0)"],
            "\nFatal Python error: ",
        ),
    ],
)
async def test_one_that_cannot_start_says_why_in_a_line_or_two(
    server: ServerProcess, start: KernelStarter, arguments: list[str], words: str
) -> None:
    argv = (sys.executable, *arguments)
    write_kernelspec(server.home.jupyter_path, "failing", Spec(argv=argv))
    kernel = await start("failing", ready=False)

    reason = (await kernel.becomes("dead"))["reason"]

    assert "before it was ready. The last it wrote:\n" in reason
    assert words in reason
    assert "Traceback" not in reason
    assert len(reason.splitlines()) <= 4
    await kernel.rest.delete(kernel.id)
