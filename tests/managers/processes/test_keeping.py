"""``--on-shutdown keep`` on a real server: what kernels can do, and what they survive.

These are the tests of `app.managers.kernels.losses`,
`app.managers.processes.keeper.new_keepers` and `app.managers.processes.keeper.provisioner`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from app.managers.processes.keeper.new_keepers import new_keepers
from app.settings import Settings
from tests.conftest import MakeServer, servers
from tests.support.home import Home
from tests.support.processes import children, eventually, is_alive, keepers
from tests.support.rest import RestClient, RestError
from tests.support.running import KernelStarter
from tests.support.server import ServerProcess, run_server

KEEP = ("--on-shutdown", "keep")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server(*KEEP)


def keeper_of(server: ServerProcess) -> psutil.Process:
    found = keepers(server.home.processes())
    assert len(found) == 1, found
    return found[0]


async def test_a_kernel_is_the_keepers_child_and_can_do_what_any_can(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("python3")
    code = "import os; print(os.getppid(), os.environ.get('JPY_PARENT_PID'), os.getsid(0))"
    parent, watched, session = (await kernel.channels.execute(code)).text.split()
    keeper = keeper_of(server)
    assert (int(parent), watched) == (keeper.pid, "1")
    assert int(session) != os.getsid(keeper.pid) != os.getsid(server.pid)

    request = await kernel.begins("import time; print('begun', flush=True); time.sleep(1000)")
    await kernel.rest.interrupt(kernel.id)
    assert (await kernel.channels.exchange(request)).error["ename"] == "KeyboardInterrupt"

    await kernel.rest.restart(kernel.id)
    assert (await kernel.channels.execute("import os; print(os.getsid(0))")).text != session


async def test_its_death_is_seen_at_once_and_explained(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("fake-children")
    pid = await kernel.pid()
    spawned = children(pid)
    exchange = await kernel.channels.execute("raw the last words\ndie 13")
    assert "exited with code 13. The last it wrote:\nthe last words" in exchange.error["evalue"]
    await kernel.told("idle")
    await eventually(lambda: not any(is_alive(child.pid) for child in spawned))

    os.kill(await kernel.pid(), signal.SIGSEGV)
    await kernel.told("idle")
    assert "killed by signal 11 (SIGSEGV)" in (await kernel.model())["restarts"]["reason"]


async def test_a_start_that_fails_says_why(start: KernelStarter) -> None:
    with pytest.raises(RestError, match="No such file or directory: '/nonexistent/kernel'"):
        await start("fake-missing")
    kernel = await start("fake-exit", ready=False)
    model = await kernel.becomes("dead")
    assert "exited with code 7" in model["reason"]
    assert "the fake kernel cannot start" in model["reason"]


async def test_kernels_live_on_when_the_keeper_is_killed(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start()
    pid, keeper, mark = await kernel.pid(), keeper_of(server), server.mark()
    keeper.kill()
    await eventually(lambda: "its 1 kernels live on" in server.output(mark))
    await eventually(lambda: keeper_of(server).pid != keeper.pid)
    assert await kernel.pid() == pid

    exchange = await kernel.channels.execute("die 3")
    assert "ended; how is not known" in exchange.error["evalue"]
    await kernel.told("idle")
    assert psutil.Process(await kernel.pid()).ppid() == keeper_of(server).pid


async def test_kernels_live_on_when_the_server_is_killed(
    make_server: MakeServer, home: Home
) -> None:
    server = make_server(*KEEP, home=home)
    async with RestClient(server.url, server.token) as rest:
        kernel = await rest.start_kernel("python3")
        await rest.wait_for_state(kernel["id"], "idle")
    keeper = keeper_of(server)
    (process,) = children(keeper.pid)
    server.crash()
    await asyncio.sleep(1.5)  # a kernel that ends with its server looks once a second
    assert is_alive(process.pid)
    assert is_alive(keeper.pid)


@pytest.mark.parametrize("name", ["keeper/socket", "registry.sqlite"])
def test_what_is_open_to_others_stops_the_start(home: Home, name: str) -> None:
    (home.state_dir / "keeper").mkdir(mode=0o700)
    file = home.state_dir / name
    file.touch()
    file.chmod(0o660)
    where = ("--state-dir", str(home.state_dir), "--port", "0")
    refused = run_server(*KEEP, *where, home=home)
    assert refused.returncode == 2
    remedy = f"chmod 0600 {file}"
    assert f"is open to others (mode 0660): {remedy}" in refused.stderr


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says what becomes of kernels; `tests/conftest.py` does for other tests."""
    monkeypatch.delenv("KERNELKEEP_ON_SHUTDOWN", raising=False)


@pytest.fixture
def on_nfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unset: None) -> Path:
    """A state directory on a network file system."""
    for module in ("app.settings", "app.managers.processes.keeper.new_keepers"):
        monkeypatch.setattr(
            f"{module}.network_file_system", lambda path: path == tmp_path and "nfs"
        )
    return tmp_path


async def warnings_of(caplog: pytest.LogCaptureFixture, **options: Any) -> list[str]:
    settings = Settings(_cli_parse_args=False, **options)
    keepers = new_keepers(settings, settings.state_dir, [])
    await keepers.close()
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


async def test_a_server_on_a_network_file_system_says_that_kernels_end_with_it(
    on_nfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert await warnings_of(caplog, state_dir=on_nfs) == [
        "kernels end with this server: the state directory is on a network file system (nfs) "
        "(on_shutdown=stop says so)"
    ]


async def test_one_that_keeps_kernels_there_all_the_same_says_what_to_do(
    on_nfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (warning,) = await warnings_of(caplog, state_dir=on_nfs, on_shutdown="keep")
    assert warning.startswith(f"the state directory {on_nfs} is on a network file system (nfs), ")
    assert warning.endswith(
        "; either set on_shutdown=stop and a state_dir on a tmpfs, or a state_dir on a local disk"
    )


@pytest.mark.usefixtures("unset")
@pytest.mark.parametrize("option", ["keep", "stop", None])
async def test_neither_is_said_where_there_is_no_cause(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, option: str | None
) -> None:
    given = {} if option is None else {"on_shutdown": option}
    assert await warnings_of(caplog, state_dir=tmp_path, **given) == []


async def test_a_server_that_stops_its_kernels_may_be_on_a_network_file_system(
    on_nfs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert await warnings_of(caplog, state_dir=on_nfs, on_shutdown="stop") == []
