"""Sandboxes of bubblewrap's: what is asked of bwrap, and kernels that try to get out of theirs."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from app.keeper.launching import ARGUMENTS
from app.keeper.processes import UNKNOWN_EXIT
from app.managers.errors import IsolationUnavailable
from app.managers.processes.isolation.confinement import kernels_exit_code
from app.managers.processes.isolation.places import KernelPlace
from app.managers.processes.isolation.sandbox import Sandbox, Sandboxed, make_own_home
from tests.conftest import MakeServer, servers
from tests.support.home import Home
from tests.support.isolated import OPEN_FILES, IsolatedHome, Owner, SandboxServer, check_files
from tests.support.kernelspecs import Spec, shell_spec, write_kernelspecs
from tests.support.processes import eventually, is_alive, keepers, read_process
from tests.support.rest import RestError

# What is asked of bwrap


def sandbox(readable: tuple[Path, ...], hidden: tuple[Path, ...] = ()) -> Sandbox:
    return Sandbox("/bin/bwrap", "/bin/env", readable, hidden, network=False)


def options(arguments: list[str], name: str) -> list[tuple[str, ...]]:
    """What an option is given, each time."""
    found = []
    for place, word in enumerate(arguments):
        if word == name:
            rest = arguments[place + 1 :]
            end = next((at for at, other in enumerate(rest) if other.startswith("--")), len(rest))
            found.append(tuple(rest[:end]))
    return found


def test_the_environment_counts_inside_alone(tmp_path: Path) -> None:
    one = Sandboxed(KernelPlace(tmp_path, "id"), sandbox((Path("/usr"),)), tmp_path / "anna")
    launch = one.launch(["sh"], {"PATH": "/usr/bin", "LD_PRELOAD": "/x"}, str(tmp_path), "")
    assert (launch.env, launch.cwd) == ({}, "/")
    ignoring = ["--ignore-signal=INT", "--ignore-signal=TERM"]
    heeding = ["--default-signal=INT", "--default-signal=TERM"]
    outside = ["/bin/env", *ignoring, "/bin/bwrap", "--args", ARGUMENTS, "--"]
    assert launch.command == [*outside, "/bin/env", *heeding, "sh"]
    arguments = launch.fields["arguments"]
    assert options(arguments, "--setenv") == [("PATH", "/usr/bin"), ("LD_PRELOAD", "/x")]


def test_what_is_hidden_is_so_wherever_it_would_be_seen(tmp_path: Path) -> None:
    state, secret = tmp_path / "state", tmp_path / "secret"
    state.mkdir()
    secret.write_text("")
    hidden = (state, secret, tmp_path / "missing", Path("/elsewhere"))
    made = sandbox((tmp_path, Path("/usr")), hidden)
    arguments = made.arguments(tmp_path / "anna", "/", {}, None)
    assert (str(state),) in options(arguments, "--tmpfs")
    assert options(arguments, "--ro-bind") == [(os.devnull, str(secret))]
    # The later of two options counts: the home is seen although what it lies in is hidden.
    assert arguments.index("--bind") > max(arguments.index(str(path)) for path in hidden[:2])
    assert [path for _, path in options(arguments, "--ro-bind-try")] == ["/usr", str(tmp_path)]


def test_what_is_hidden_is_so_where_a_link_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "real" / "state").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    made = sandbox((tmp_path / "link",), (tmp_path / "real" / "state",))
    arguments = made.arguments(tmp_path / "anna", "/", {}, None)
    assert (str(tmp_path / "link" / "state"),) in options(arguments, "--tmpfs")


def test_a_program_is_seen_with_all_that_it_is_a_link_to(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for directory in (inside, outside, inside / "hidden"):
        directory.mkdir()
        (directory / "program").write_text("")
    (inside / "link").symlink_to(outside / "program")
    made = sandbox((inside,), (inside / "hidden",))
    assert made.shows(str(inside / "program"))
    for other in ("link", "hidden/program", "../outside/program"):
        assert not made.shows(str(inside / other))
    one = Sandboxed(KernelPlace(tmp_path, "id"), made, tmp_path / "anna")
    with pytest.raises(IsolationUnavailable, match="isolation_paths names further ones"):
        one.launch([str(outside / "program")], {}, "/", "")
    assert one.launch([str(outside / "program")], {}, "/", str(outside)).cwd == "/"


@pytest.mark.parametrize(
    ("kind", "code", "exit_code"),
    [
        *[("bubblewrap", 137, -9), ("bubblewrap", 130, -2), ("bubblewrap", 7, 7)],
        *[("bubblewrap", -9, -9), ("bubblewrap", 128, 128), ("bubblewrap", 255, 255)],
        *[("bubblewrap", UNKNOWN_EXIT, UNKNOWN_EXIT), ("user", 137, 137), ("none", 137, 137)],
    ],
)
def test_how_a_kernel_ended_is_told_by_bwraps_exit_code(
    kind: str, code: int, exit_code: int
) -> None:
    assert kernels_exit_code(kind, code) == exit_code


def test_a_home_of_somebody_else_is_refused(tmp_path: Path) -> None:
    make_own_home(tmp_path / "anna")
    make_own_home(tmp_path / "anna")
    assert (tmp_path / "anna").stat().st_mode & 0o777 == 0o700
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(IsolationUnavailable, match="no directory of the service's user"):
        make_own_home(tmp_path / "link")


# Kernels in sandboxes

DYING = Spec(argv=("/bin/sh", "-c", "echo the last words >&2; exit 3"))


@pytest.fixture(scope="module")
def isolated(request: pytest.FixtureRequest) -> Iterator[SandboxServer]:
    specs = {"dying": DYING, "hidden": shell_spec("exec $FAKE")}
    with servers(request.config) as make_server:
        home = IsolatedHome()
        server = make_server("--files-by-owner", kind=SandboxServer, home=home, specs=specs)
        assert isinstance(server, SandboxServer)
        yield server
    home.remove()


def outer_pid(home: Home, argv: list[str]) -> int:
    """The process of a kernel that the keeper has: it leads a session, and names its file."""
    (pid,) = [
        one.pid
        for one in home.processes()
        if argv[-1] in one.cmdline() and os.getsid(one.pid) == one.pid
    ]
    return pid


async def test_nothing_of_another_owners_kernel_is_within_reach(
    isolated: SandboxServer, anna: Owner, ben: Owner
) -> None:
    await anna.executions.run(
        "import socket; open('secret', 'w').write('x'); "
        "abstract = socket.socket(socket.AF_UNIX); abstract.bind('\\0anna'); abstract.listen(); "
        "tcp = socket.socket(); tcp.bind(('127.0.0.1', 0)); tcp.listen()"
    )
    argv, home, port = await anna.value("(sys.argv, os.getcwd(), tcp.getsockname()[1])")
    pid, place = outer_pid(isolated.home, argv), Path(argv[-1]).parent
    outcome = await ben.attempt(
        connection=f"open({argv[-1]!r}).read()",
        runtime=f"os.listdir({str(place)!r})",
        shell=f"unix({str(place / 's' / 'c-1')!r})",
        abstract="unix('\\0anna')",
        tcp=f"socket.create_connection(('127.0.0.1', {port}))",
        memory=f"open('/proc/{pid}/mem', 'rb').read(1)",
        variables=f"open('/proc/{pid}/environ', 'rb').read(1)",
        directory=f"os.listdir('/proc/{pid}/cwd')",
        home=f"os.listdir({home!r})",
        file=f"open({home!r} + '/secret').read()",
        signal=f"os.kill({pid}, 0)",
        group=f"os.killpg({pid}, signal.SIGINT)",
        ptrace=f"ptrace({pid})",
        others="sorted(name for name in os.listdir('/proc') if name.isdigit())",
        homes=f"sorted(os.listdir({os.path.dirname(home)!r}))",
    )
    expected = dict.fromkeys(outcome, "FileNotFoundError")
    expected |= dict.fromkeys(("abstract", "tcp"), "ConnectionRefusedError")
    expected |= dict.fromkeys(("signal", "group", "ptrace"), "ProcessLookupError")
    assert outcome == expected | {"others": "['1', '2']", "homes": "['.run', 'ben']"}


async def test_the_files_that_are_served_are_those_of_the_owners_home(
    isolated: SandboxServer, anna: Owner, ben: Owner
) -> None:
    await check_files(anna, ben, isolated)


async def test_nothing_of_the_service_is_within_reach(isolated: SandboxServer, ben: Owner) -> None:
    home = isolated.home
    (keeper,) = keepers(home.processes())
    with socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0of-the-host-" + str(isolated.port))
        abstract.listen()
        outcome = await ben.attempt(
            state=f"os.listdir({str(home.state_dir)!r})",
            keeper=f"unix({str(home.run_dir / 'keeper' / 'socket')!r})",
            token=f"open('/proc/{isolated.pid}/environ', 'rb').read(1)",
            memory=f"open('/proc/{keeper.pid}/mem', 'rb').read(1)",
            documents=f"os.listdir({str(home.root_dir)!r})",
            signal=f"os.kill({keeper.pid}, 0)",
            ptrace=f"ptrace({keeper.pid})",
            api=f"socket.create_connection(('127.0.0.1', {isolated.port}))",
            abstract=f"unix('\\0of-the-host-{isolated.port}')",
            system="open('/etc/planted', 'w')",
            root="open('/planted', 'w')",
            packages="open(sys.prefix + '/planted', 'w')",
            mount="call('mount', b'none', b'/tmp', b'tmpfs', 0, None)",
            user="os.setuid(0)",
        )
    expected = dict.fromkeys(outcome, "FileNotFoundError")
    expected |= dict.fromkeys(("signal", "ptrace"), "ProcessLookupError")
    expected |= dict.fromkeys(("api", "abstract"), "ConnectionRefusedError")
    expected |= dict.fromkeys(("system", "root", "packages", "user"), "OSError")
    assert outcome == expected | {"mount": "PermissionError"}


async def test_each_kernel_has_namespaces_of_its_own_and_no_rights(
    isolated: SandboxServer, anna: Owner
) -> None:
    names = ("user", "pid", "ipc", "uts", "net", "mnt")
    links = f"[os.readlink('/proc/self/ns/' + name) for name in {names!r}]"
    theirs = await anna.value(links)
    for name, seen in zip(names, theirs, strict=True):
        assert os.readlink(f"/proc/{isolated.pid}/ns/{name}") != seen
    status = await anna.value("open('/proc/self/status').read()")
    assert "NoNewPrivs:\t1" in status
    assert {line for line in status.splitlines() if line.startswith("Cap")} == {
        f"Cap{which}:\t{0:016x}" for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")
    }
    home = str(isolated.isolated_home.homes / "anna")
    seen = await anna.value(
        "[os.getcwd(), os.environ['HOME'], os.environ['USER'], os.environ['SECRET'], "
        "open('/dev/stdout', 'w').mode, open('/tmp/mine', 'w').mode]"
    )
    assert seen == [home, home, "anna", "anna", "w", "w"]


async def test_a_variable_that_runs_code_runs_none_outside(isolated: SandboxServer) -> None:
    async with Owner(isolated, "carl") as carl:
        await carl.start(env={"LD_PRELOAD": "/no/such.so", "GCONV_PATH": "."})
        argv, inside = await carl.value("(sys.argv, os.environ['LD_PRELOAD'])")
        pid = outer_pid(isolated.home, argv)
        assert read_process(pid, "environ") == b""
        assert b"no/such" not in read_process(pid, "cmdline")
        assert inside == "/no/such.so"
        await carl.rest.delete(carl.kernel_id)


async def test_it_is_interrupted_restarted_and_dies_as_any_kernel(
    isolated: SandboxServer, anna: Owner
) -> None:
    begun = await anna.executions.begin("print('begun', flush=True); import time; time.sleep(1000)")

    async def has_begun() -> bool:
        return bool((await anna.executions.get(begun))["outputs"])

    await eventually(has_begun)
    await anna.rest.interrupt(anna.kernel_id)
    assert (await anna.executions.ended(begun))["outputs"][-1]["ename"] == "KeyboardInterrupt"
    before = outer_pid(isolated.home, await anna.value("sys.argv"))
    await anna.rest.restart(anna.kernel_id)
    assert outer_pid(isolated.home, await anna.value("sys.argv")) != before
    for code, reason in (
        ("os.kill(os.getpid(), 9)", "was killed by signal 9 (SIGKILL)"),
        ("os.kill(0, 9)", "was killed by signal 9 (SIGKILL)"),
        ("os._exit(7)", "exited with code 7"),
    ):
        generation = (await anna.rest.kernel(anna.kernel_id))["generation"]
        await anna.executions.begin(f"import os; {code}")

        async def is_another(generation: int = generation) -> bool:
            return (await anna.rest.kernel(anna.kernel_id))["generation"] > generation

        await eventually(is_another, 30)
        await anna.rest.wait_for_state(anna.kernel_id, "idle", timeout=60)
        assert reason in (await anna.rest.kernel(anna.kernel_id))["restarts"]["reason"]


async def test_its_owners_limits_hold_for_it(anna: Owner) -> None:
    limits = await anna.value("__import__('resource').getrlimit(7)")  # RLIMIT_NOFILE of Linux
    assert limits == [OPEN_FILES, OPEN_FILES]
    used = (await anna.rest.request("GET", f"/api/kernels/{anna.kernel_id}/usage")).json()
    assert used["limits"]["open_files"] == {"value": OPEN_FILES, "enforced": "setrlimit"}


async def test_what_a_kernel_has_started_ends_with_it(isolated: SandboxServer) -> None:
    async with Owner(isolated, "carl") as carl:
        await carl.start()
        await carl.executions.run(
            "import subprocess; subprocess.Popen(['sleep', '98765'], start_new_session=True)"
        )
        (pid,) = [one.pid for one in isolated.home.processes() if "98765" in one.cmdline()]
        await carl.rest.delete(carl.kernel_id)
        await eventually(lambda: not is_alive(pid))


async def test_last_words_and_the_exit_code_are_told(isolated: SandboxServer) -> None:
    async with Owner(isolated, "carl") as carl:
        kernel_id = (await carl.rest.start_kernel("dying"))["id"]
        model = await carl.rest.wait_for_state(kernel_id, "dead", timeout=60)
        assert "exited with code 3" in model["reason"]
        assert "the last words" in model["reason"]
        await carl.rest.delete(kernel_id)


async def test_a_path_leads_to_what_is_in_the_home(isolated: SandboxServer) -> None:
    home = isolated.isolated_home.homes / "carl"
    (home / "work").mkdir(parents=True, exist_ok=True)
    async with Owner(isolated, "carl") as carl:
        await carl.start(path="work/a.ipynb")
        assert await carl.value("os.getcwd()") == str(home / "work")
        await carl.rest.delete(carl.kernel_id)


async def test_kernels_outlive_the_server_and_the_keeper() -> None:
    home = IsolatedHome()
    keep = ("--on-shutdown", "keep")
    write_kernelspecs(home.jupyter_path, {})
    first = SandboxServer(*keep, home=home).start()
    async with Owner(first, "anna") as anna:
        kernel_id = await anna.start()
        await anna.executions.run("x = 42")
        pid = outer_pid(home, await anna.value("sys.argv"))
    (keeper,) = keepers(home.processes())
    first.crash()
    os.kill(keeper.pid, signal.SIGKILL)
    second = SandboxServer(*keep, home=home).start()
    try:
        async with Owner(second, "anna", kernel_id) as anna:
            assert await anna.value("x") == 42
            begun = await anna.executions.begin("print(1, flush=True); import time; time.sleep(99)")

            async def has_begun() -> bool:
                return bool((await anna.executions.get(begun))["outputs"])

            await eventually(has_begun)
            await anna.rest.interrupt(kernel_id)
            ended = await anna.executions.ended(begun)
            assert ended["outputs"][-1]["ename"] == "KeyboardInterrupt"
            await anna.rest.restart(kernel_id)
            assert not is_alive(pid)
            assert await anna.value("'x' in globals()") is False
            await anna.rest.delete(kernel_id)
        assert [*home.homes.glob(".run/*/*")] == []
    finally:
        second.stop()
        home.remove()


class OpenSandboxServer(SandboxServer):
    """The same without isolation."""

    @property
    def command(self) -> list[str]:
        return [word if word != "bubblewrap" else "none" for word in super().command]


async def test_a_kernel_from_before_the_isolation_is_named_until_it_is_restarted() -> None:
    home = IsolatedHome()
    keep = ("--on-shutdown", "keep")
    write_kernelspecs(home.jupyter_path, {})
    first = OpenSandboxServer(*keep, home=home).start()
    async with Owner(first, "anna") as anna:
        kernel_id = await anna.start()
        before = await anna.value("(os.getpid(), sys.argv[-1])")
    first.crash()
    second = SandboxServer(*keep, home=home).start()
    try:
        assert f"kernel {kernel_id} was launched under other options" in second.output()
        async with Owner(second, "anna", kernel_id) as anna:
            assert await anna.value("(os.getpid(), sys.argv[-1])") == before
            await anna.rest.restart(kernel_id)
            assert await anna.value("os.getpid()") == 2
            assert await anna.value("os.getcwd()") == str(home.homes / "anna")
            assert not is_alive(before[0])
            await anna.rest.delete(kernel_id)
    finally:
        second.stop()
        home.remove()


async def test_over_tcp_kernels_are_encrypted_or_refused(make_server: MakeServer) -> None:
    home = IsolatedHome()
    server = make_server(
        *("--transport", "tcp", "--isolation-network", "--isolation-paths", str(home.jupyter_path)),
        kind=SandboxServer,
        home=home,
        specs={"curve": _python(metadata={"supported_encryption": "curve"}), "plain": _python()},
    )
    async with Owner(server, "anna") as anna:
        with pytest.raises(RestError) as refused:
            await anna.start("plain")
        assert refused.value.error["code"] == "isolation_unavailable"
        await anna.start("curve")
        port = await anna.value("json.load(open(sys.argv[-1]))['iopub_port']")
        with zmq.Context[zmq.Socket[bytes]]() as context, context.socket(zmq.SUB) as listener:
            listener.subscribe(b"")
            listener.linger = 0
            listener.connect(f"tcp://127.0.0.1:{port}")
            assert await anna.value("6 * 7") == 42
            assert listener.poll(500) == 0
        await anna.rest.delete(anna.kernel_id)
    server.stop()
    home.remove()


def _python(**fields: object) -> Spec:
    arguments = ("-m", "ipykernel_launcher", "-f", "{connection_file}")
    return Spec(argv=(sys.executable, *arguments), fields=fields)
