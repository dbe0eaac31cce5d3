"""Forked kernels: what is their own, how they end, and what happens without fork servers.

These are the tests of `app.managers.processes.forking.fork_server`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.conftest import MakeServer, servers
from tests.support.home import Home
from tests.support.kernelspecs import Spec
from tests.support.processes import eventually, is_alive, is_fork_server, keepers, usage
from tests.support.running import KernelStarter, RunningKernel, kernels_of
from tests.support.server import ServerProcess

PYTHON = (sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher")
COMMAND = (*PYTHON, "-f", "{connection_file}")


def forked(argv: tuple[str, ...] = COMMAND, **config: Any) -> Spec:
    """A Python kernelspec that asks for being forked."""
    stanza = {"provisioner_name": "kernelkeep-fork", "config": config}
    fields = {"language": "python"}
    return Spec(argv=argv, metadata={"kernel_provisioner": stanza}, fields=fields)


SPECS = {
    "limited": forked(limits={"NOFILE": 777, "AS": 2**33}),
    "with-numpy": forked(preload=["numpy"]),
    "with-arguments": forked((*COMMAND, "--InteractiveShellApp.exec_lines=asked = 1")),
    "no-module": forked(preload=["no_such_module"]),
    "threads": forked(preload=["starts_a_thread"]),
    "other-command": forked((sys.executable, "-c", "raise SystemExit(4)")),
    "no-interpreter": forked(("/nonexistent/python", *COMMAND[1:])),
}


@pytest.fixture(scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    modules = tmp_path_factory.mktemp("modules")
    (modules / "starts_a_thread.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    env = {"PYTHONPATH": str(modules), "OPENBLAS_NUM_THREADS": "1"}
    with servers(request.config) as make_server:
        yield make_server("--fork-kernels", "python3,nothing", env=env, specs=SPECS)


async def run(kernel: RunningKernel, code: str) -> Any:
    """What ``code`` leaves in ``result``, by way of JSON."""
    code = f"import json\n{code}\nprint(json.dumps(result))"
    return json.loads((await kernel.channels.execute(code)).text)


async def is_forked(kernel: RunningKernel) -> bool:
    """A forked process has the command line of its fork server."""
    pid = await run(kernel, "import os; result = os.getpid()")
    return "fork_server.py" in " ".join(psutil.Process(pid).cmdline())


def fork_servers(server: ServerProcess) -> list[psutil.Process]:
    return [process for process in server.home.processes() if is_fork_server(process)]


async def interrupted(kernel: RunningKernel) -> None:
    """Interrupt a kernel that runs something, and see it end."""
    msg_id = await kernel.channels.send_execute("import time; print('on'); time.sleep(100)")
    await kernel.channels.seen(lambda m: m.parent_id == msg_id and m.msg_type == "stream")
    await kernel.rest.interrupt(kernel.id)
    assert (await kernel.channels.exchange(msg_id)).error["ename"] == "KeyboardInterrupt"


OWN = """
import os, random, sys, tempfile, uuid
import numpy
result = {
    "numpy": numpy.random.random(),
    "random": random.random(),
    "uuid4": str(uuid.uuid4()),
    "uuid1": str(uuid.uuid1()),
    "mktemp": tempfile.mktemp(),
    "hash": hash("kernelkeep"),
    "pid": os.getpid(),
    "group": os.getpgrp(),
    "session": os.getsid(0),
    "authkey": __import__("multiprocessing").current_process().authkey.hex(),
    "argv": sys.argv[1:],
}
"""


@pytest.mark.parametrize("name", ["python3", "with-numpy"])
async def test_two_forked_kernels_have_nothing_drawn_in_common(
    start: KernelStarter, name: str
) -> None:
    kernel = await start(name)
    assert await is_forked(kernel)
    one = await run(kernel, OWN)

    async def of_another_server() -> Any:
        """From when both of the servers that take turns are there, neighbours hash differently."""
        kernel = await start(name)
        seen = await run(kernel, OWN)
        assert seen["hash"] != one["hash"]
        return seen

    other = await eventually(of_another_server, 60, interval=0.5)
    assert [key for key in one if one[key] == other[key]] == []
    for seen in (one, other):
        assert seen["pid"] == seen["group"] == seen["session"]
        assert seen["argv"][0] == "-f"


async def test_a_forked_kernel_has_its_own_environment_directory_limits_and_files(
    server: ServerProcess, start: KernelStarter
) -> None:
    (server.home.root_dir / "below").mkdir()
    kernel = await start("limited", path="below", env={"MINE": "ä\n1", "TZ": "Asia/Tokyo"})
    assert await is_forked(kernel)
    code = """
import os, resource, time, sys, gc, threading, __main__
result = {
    "cwd": os.getcwd(),
    "mine": os.environ["MINE"],
    "tz": time.tzname[0],
    "limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
    "token": [name for name in os.environ if name.startswith("KERNELKEEP")],
    "stdin": sys.__stdin__.read(),
    "gc": gc.isenabled(),
    "main": [name for name in vars(__main__) if "ork" in name],
    "path": [entry for entry in sys.path if "managers" in entry],
    "sockets": [
        os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")
        if os.path.exists(f"/proc/self/fd/{fd}")
    ],
}
"""
    seen = await run(kernel, code)
    assert seen["cwd"] == str(server.home.root_dir / "below")
    assert seen["mine"] == "ä\n1"
    assert seen["tz"] == "JST"
    assert seen["limit"] == 777
    assert seen["token"] == seen["main"] == seen["path"] == []
    assert seen["stdin"] == ""
    assert seen["gc"] is True
    # And of the server's own: its socket is in none of its children.
    told = await kernel.channels.execute("import os; os.write(1, b'by the process itself\\n');")
    assert told.reply["status"] == "ok"
    log = server.home.run_dir / "output" / f"kernel-{kernel.id}.log"
    # The keeper makes the file when it reads the first of the process's own output.
    await eventually(lambda: log.exists() and "by the process itself" in log.read_text())


async def test_a_forked_kernel_heeds_its_configuration_files_and_arguments(
    start: KernelStarter, tmp_path: Path
) -> None:
    async def configured(name: str, folder: str) -> Any:
        profile = tmp_path / folder / "profile_default"
        (profile / "startup").mkdir(parents=True)
        (profile / "startup" / "first.py").write_text(f"started = {folder!r}\n")
        (profile / "ipython_config.py").write_text(f"c.StoreMagics.autorestore = {folder == 'b'}\n")
        (profile / "ipython_kernel_config.py").write_text(
            f"c.IPKernelApp.matplotlib = None\nc.InteractiveShell.cache_size = {len(folder) + 8}\n"
        )
        kernel = await start(name, env={"IPYTHONDIR": str(tmp_path / folder)})
        assert await is_forked(kernel)
        code = """
shell = get_ipython()
result = [
    started, shell.cache_size, shell.config.StoreMagics.autorestore, shell.profile_dir.location,
    globals().get("asked"), shell.parent.parent.log.name, type(shell.parent.parent).__name__,
]
"""
        return await run(kernel, code)

    def expected(folder: str, asked: int | None) -> list[Any]:
        profile = str(tmp_path / folder / "profile_default")
        application = ["IPKernelApp", "IPKernelApp"]
        return [folder, len(folder) + 8, folder == "b", profile, asked, *application]

    assert await configured("python3", "a") == expected("a", None)
    assert await configured("python3", "b") == expected("b", None)
    assert await configured("with-arguments", "longer") == expected("longer", 1)


async def test_a_forked_kernel_that_runs_out_of_memory_says_so_and_goes_on(
    start: KernelStarter,
) -> None:
    kernel = await start("limited")
    assert await is_forked(kernel)
    exchange = await kernel.channels.execute("much = bytearray(2**34)")
    assert exchange.error["ename"] == "MemoryError"
    assert (await kernel.channels.execute("print(6 * 7)")).text == "42\n"


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import os; os._exit(3)", "exited with code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9 (SIGKILL)"),
    ],
)
async def test_a_forked_kernel_that_dies_says_how_and_is_forked_again(
    server: ServerProcess, start: KernelStarter, code: str, says: str
) -> None:
    kernel = await start("python3")
    mark = server.mark()
    exchange = await kernel.channels.execute(code)
    assert says in exchange.error["evalue"]
    await kernel.told("idle")
    await eventually(lambda: says in server.output(mark))
    assert (await kernel.channels.execute("print(6 * 7)")).text == "42\n"
    assert await is_forked(kernel)


async def test_a_forked_kernel_is_interrupted_restarted_and_shut_down_as_any_other(
    start: KernelStarter,
) -> None:
    kernel = await start("python3")
    await interrupted(kernel)
    before = await run(kernel, "import os; result = os.getpid()")
    left = await run(kernel, "import subprocess; result = subprocess.Popen(['sleep', '100']).pid")
    await start.rest.restart(kernel.id)
    after = await run(kernel, "import os; result = os.getpid()")
    assert after != before
    # The old process is not even a zombie, and what it had started ended with it.
    await eventually(lambda: not psutil.pid_exists(before) and not is_alive(left))
    await start.rest.delete(kernel.id)
    await eventually(lambda: not psutil.pid_exists(after))


async def test_matplotlib_and_widgets_work_in_a_forked_kernel(start: KernelStarter) -> None:
    kernel = await start("python3")
    assert await is_forked(kernel)
    plot = await kernel.channels.execute(
        "%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 3, 2]); plt.show()"
    )
    assert any("image/png" in m.content.get("data", {}) for m in plot.outputs), plot.messages
    slider = await kernel.channels.execute("import ipywidgets\nipywidgets.IntSlider(value=7)")
    assert slider.of_type("comm_open")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no-module", "the preload no_such_module cannot be imported: ModuleNotFoundError"),
        ("threads", "the preload starts_a_thread starts a thread"),
    ],
)
async def test_a_preload_that_cannot_be_is_named_and_kernels_start_all_the_same(
    server: ServerProcess, start: KernelStarter, name: str, why: str
) -> None:
    for _ in range(2):
        kernel = await start(name)
        assert (await kernel.channels.execute("print(6 * 7)")).text == "42\n"
        assert not await is_forked(kernel)
    await eventually(lambda: f"not forked but started: {why}" in server.output())
    assert server.output().count(f"WARNING  kernels are not forked but started: {why}") <= 1


async def test_what_cannot_be_forked_is_started_and_fails_as_it_would(
    server: ServerProcess, start: KernelStarter
) -> None:
    kernel = await start("other-command", ready=False)
    assert "exited with code 4" in (await kernel.becomes("dead"))["reason"]
    response = await start.rest.http.post("/api/kernels", json={"name": "no-interpreter"})
    assert response.status_code == 500
    assert "/nonexistent/python" in response.json()["message"]
    # Another module path cannot be had after the fork.
    kernel = await start("python3", env={"PYTHONPATH": str(server.home.root_dir)})
    assert not await is_forked(kernel)
    assert str(server.home.root_dir) in await run(kernel, "import sys; result = sys.path")
    said = "fork_kernels: kernelspec nothing cannot be used"
    await eventually(lambda: said in server.output())


def held(server: ServerProcess) -> list[tuple[int, int]]:
    (keeper,) = keepers(server.home.processes())
    pids = [server.pid, keeper.pid, *(process.pid for process in fork_servers(server))]
    return [(usage(pid).descriptors, usage(pid).children) for pid in sorted(pids)]


async def nothing_is_left(server: ServerProcess, start: KernelStarter) -> None:
    """Of kernels that came and went, in the service, its keeper or their servers."""

    async def live_and_die() -> None:
        kernel = await start("python3")
        await start.rest.restart(kernel.id)
        await kernel.told("idle")
        await start.rest.delete(kernel.id)
        await kernel.channels.close()

    await live_and_die()
    await eventually(lambda: server.output().count("is ready") >= 3, 60)  # itself and two more
    before = held(server)
    for _ in range(3):
        await live_and_die()

    def is_back() -> bool:
        after = held(server)
        assert all(now <= then for now, then in zip(after, before, strict=True)), (before, after)
        return True

    await eventually(is_back, 30)


async def test_the_end_of_the_fork_servers_harms_no_kernel_and_the_next_start_is_ordinary(
    make_server: MakeServer,
) -> None:
    server = make_server("--fork-kernels", "python3", specs={})
    async with kernels_of(server) as start:
        await nothing_is_left(server, start)
        kernel = await start("python3")
        assert await is_forked(kernel)
        await run(kernel, "kept = result = 5")
        for process in fork_servers(server):
            process.send_signal(signal.SIGKILL)
        assert await run(kernel, "result = kept") == 5
        other = await start("python3")
        assert not await is_forked(other)
        pid = await run(kernel, "import os; result = os.getpid()")
        await interrupted(kernel)
        os.kill(pid, signal.SIGKILL)
        await kernel.told("restarting")
        await kernel.told("idle")
        assert await run(kernel, "import os; result = os.getpid()") != pid


async def test_forked_kernels_end_with_a_server_that_is_killed(
    make_server: MakeServer, home: Home
) -> None:
    server = make_server("--fork-kernels", "python3", specs={}, home=home)
    async with kernels_of(server) as start:
        await start("python3")
        start.started.clear()
    server.crash()
    await eventually(lambda: home.processes() == [], 30)
