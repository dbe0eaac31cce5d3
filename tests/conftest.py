"""Fixtures around a real server process; each worker of pytest-xdist has servers of its own."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from importlib.util import find_spec
from typing import Protocol

import pytest
from hypothesis import HealthCheck, settings

from app.imports import import_jsonschema
from tests.support.channels import Connector
from tests.support.commands import Commands
from tests.support.framing import FRAMINGS, FramingName
from tests.support.home import Home, require_ipykernel
from tests.support.kernelspecs import FAKE_SPECS, Spec, write_kernelspecs
from tests.support.option_files import write_options  # noqa: F401 - a fixture
from tests.support.processes import kill_all
from tests.support.rest import RestClient
from tests.support.running import KernelStarter, kernels_of
from tests.support.server import ServerProcess
from tests.support.shared import OPTIONS, SharedServer, lasting_kernel

import_jsonschema()  # before a test module imports it, with what takes a second

# httpx imports this several times a request. Where it is not installed Python looks for it in every
# directory each time, which is a third of a request's work.
if find_spec("sniffio") is None:
    sys.modules["sniffio"] = None  # type: ignore[assignment]

# A slow machine says nothing about the code.
settings.register_profile("kernelkeep", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kernelkeep")

# For servers in this process, as `Home.environment` is for all others.
os.environ["KERNELKEEP_ON_SHUTDOWN"] = "stop"

RUNNING_SERVERS = pytest.StashKey[list[ServerProcess]]()
SHOWN_LINES = 200  # of a server's output, when a test fails


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full",
        action="store_true",
        help="repeat as often as it takes to find what is rare, where CI is content with less",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RUNNING_SERVERS] = []
    config.addinivalue_line("markers", "leaks: repeats something often and counts what is left")
    ServerProcess.commands = Commands()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Every module and test that is collected stays, so nobody need look for garbage there."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    if ServerProcess.commands is not None:
        ServerProcess.commands.close()
        ServerProcess.commands = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Shows the end of every running server's output with a test that fails.

    pytest parses the test's source for its report. Garbage that is collected just then may have
    Python parse something else in between, for a warning, and Python before 3.11.5 then fails in
    pytest (cpython#106905), which ends the whole run.
    """
    gc.disable()
    try:
        report = yield
    finally:
        gc.enable()
    if report.failed:
        fixtures = getattr(item, "fixturenames", ())
        for server in item.config.stash[RUNNING_SERVERS]:
            if isinstance(server, SharedServer) and "server" not in fixtures:
                continue
            lines = server.output().splitlines()[-SHOWN_LINES:]
            report.sections.append((f"Server {server.url}", "\n".join(lines)))
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tells, at the end, what tests have to tell (``record_property("figures", TEXT)``)."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    told = [
        text for report in reports for name, text in report.user_properties if name == "figures"
    ]
    if told:
        terminalreporter.section("figures")
        for text in told:
            terminalreporter.line(str(text))


class MakeServer(Protocol):
    """Starts a server; see :class:`ServerProcess`, or another ``kind``, for the arguments."""

    def __call__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        specs: Mapping[str, Spec] = FAKE_SPECS,
        home: Home | None = None,
        kind: type[ServerProcess] = ServerProcess,
    ) -> ServerProcess: ...


@contextmanager
def servers(config: pytest.Config) -> Iterator[MakeServer]:
    running = config.stash[RUNNING_SERVERS]
    started: list[ServerProcess] = []
    require_ipykernel()

    def make_server(
        *arguments: str,
        env: Mapping[str, str] | None = None,
        specs: Mapping[str, Spec] = FAKE_SPECS,
        home: Home | None = None,
        kind: type[ServerProcess] = ServerProcess,
    ) -> ServerProcess:
        server = kind(*arguments, env=env, home=home)
        write_kernelspecs(server.home.jupyter_path, specs)
        started.append(server)
        running.append(server)
        return server.start()

    try:
        yield make_server
    finally:
        _stop(started, running)


def _stop(started: list[ServerProcess], running: list[ServerProcess]) -> None:
    failures = []
    for server in reversed(started):
        try:
            server.stop()
        except AssertionError as failure:
            failures.append(failure)
        running.remove(server)
    if failures:
        raise ExceptionGroup("servers did not end well", failures)


@pytest.fixture
def full(request: pytest.FixtureRequest) -> bool:
    """Whether ``--full`` is given."""
    return bool(request.config.getoption("--full"))


@pytest.fixture
def make_server(request: pytest.FixtureRequest) -> Iterator[MakeServer]:
    """A factory of servers with options of their own, stopped and checked after the test."""
    if "home" in request.fixturenames:
        request.getfixturevalue("home")  # which is then taken down after its servers
    with servers(request.config) as make_server:
        yield make_server


@pytest.fixture(scope="session")
def shared_server(request: pytest.FixtureRequest) -> Iterator[SharedServer]:
    """The worker's one server; tests ask for :func:`server`."""
    with servers(request.config) as make_server:
        server = make_server(*OPTIONS, kind=SharedServer)
        assert isinstance(server, SharedServer)
        yield server


@pytest.fixture(scope="module")
def server(shared_server: SharedServer) -> Iterator[ServerProcess]:
    """The worker's server, with nearly default options, the fake kernels and ``python3``.

    Its files and kernelspecs are a module's own. A module that kills it, or counts what it has done
    so far, has a fixture of this name that starts another.
    """
    yield shared_server
    shared_server.restore()


@pytest.fixture(scope="module")
def own_server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    """One like that for the module alone."""
    with servers(request.config) as make_server:
        yield make_server(*OPTIONS)


@pytest.fixture(autouse=True)
def no_kernel_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """The next test with the worker's server finds no kernel and no session of this one."""
    server = request.getfixturevalue("server") if "server" in request.fixturenames else None
    yield
    if isinstance(server, SharedServer):
        server.clear()


@pytest.fixture(scope="module")
def shared_kernel(server: ServerProcess) -> Iterator[str]:
    """The id of a fake kernel that the tests of a module share, for those that do it no harm."""
    with lasting_kernel(server, "fake") as kernel_id:
        yield kernel_id


@pytest.fixture(scope="session")
def commands() -> Commands:
    """``commands.run(*arguments, home=home)``: the command with options that it refuses."""
    assert ServerProcess.commands is not None
    return ServerProcess.commands


@pytest.fixture
def home() -> Iterator[Home]:
    """A home that outlives its servers, for tests that crash or replace one."""
    home = Home()
    yield home
    kill_all(home.processes())
    home.remove()


@pytest.fixture
async def rest(server: ServerProcess) -> AsyncIterator[RestClient]:
    """A client of :func:`server`."""
    async with RestClient(server.url, server.token) as client:
        yield client


@pytest.fixture
async def connect(server: ServerProcess) -> AsyncIterator[Connector]:
    """``await connect(kernel_id, framing="v1", ...)``: channels, closed after the test."""
    async with AsyncExitStack() as stack:
        yield Connector(server.ws_url, server.token, stack)


@pytest.fixture
async def start(server: ServerProcess) -> AsyncIterator[KernelStarter]:
    """``await start("fake")``: a kernel of :func:`server` and a client, gone after the test."""
    async with kernels_of(server) as starter:
        yield starter


@pytest.fixture(params=FRAMINGS)
def framing(request: pytest.FixtureRequest) -> FramingName:
    """Runs the test once with each framing of the WebSocket."""
    name: FramingName = request.param
    return name
