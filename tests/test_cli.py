"""The ``kernelkeep`` command: what it says, when it refuses, how it ends.

These are the tests of `app.__main__`.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import stat
from pathlib import Path

import httpx
import pytest

from tests.conftest import MakeServer
from tests.support.commands import Commands
from tests.support.home import Home
from tests.support.processes import eventually_sync
from tests.support.refusals import refusal, refused
from tests.support.rest import RestClient
from tests.support.running import kernels_of
from tests.support.server import (
    CommandServer,
    OpenServer,
    ServerProcess,
    UvicornCommandServer,
    UvicornServer,
    run_server,
)

# What it says


def test_what_it_prints_works_as_it_is_printed(make_server: MakeServer) -> None:
    class Printed(ServerProcess):
        announcement = r"http://127\.0\.0\.1:(\d+)/\?token="

        @property
        def credentials(self) -> list[str]:
            return ["--token", "a+b/c==#&? d'e"]

    server = make_server(kind=Printed)
    assert eventually_sync(lambda: "Ctrl+C" in server.output(), 30)
    (url,) = re.findall(r"^    (http://\S+)$", server.output(), re.MULTILINE)
    answer = httpx.get(url.replace("/?", "/api/status?"), trust_env=False)
    assert answer.status_code == 200
    (line,) = re.findall(r"^    (jupyter lab .*)$", server.output(), re.MULTILINE)
    assert shlex.split(line) == [
        *("jupyter", "lab", f"--gateway-url={server.url}"),
        "--GatewayClient.auth_token=a+b/c==#&? d'e",
    ]


def test_it_says_where_it_is_and_what_it_found(make_server: MakeServer) -> None:
    server = make_server()
    eventually_sync(lambda: "Stop with Ctrl+C.\n" in server.output())
    said = server.output()
    home = server.home
    assert f"{server.url}/?token={server.token}\n" in said
    assert re.search(r"Kernels: .*\bfake-slow, .*\bpython3\b", said)
    assert f"Root directory: {home.root_dir}\n" in said
    assert f"State directory: {home.state_dir}\n" in said
    command = f"jupyter lab --gateway-url={server.url} --GatewayClient.auth_token={server.token}"
    assert f"{command}\n" in said


def test_without_a_token_it_makes_one(home: Home) -> None:
    class Generating(ServerProcess):
        @property
        def credentials(self) -> tuple[str, ...]:
            return ()

        @property
        def announcement(self) -> str:
            return r"http://127\.0\.0\.1:(\d+)/\?token=[0-9a-f]{48}$"

    tokens = set()
    for _ in range(2):
        server = Generating(home=home).start()
        tokens |= set(re.findall(r"/\?token=([0-9a-f]{48})$", server.output(), re.MULTILINE))
        server.stop()
    assert len(tokens) == 2


async def test_without_authentication_it_shows_no_token(make_server: MakeServer) -> None:
    server = make_server(kind=OpenServer)
    assert f"    {server.url}/\n" in server.output()
    assert "token" not in server.output()


async def test_the_environment_gives_options_and_flags_are_stronger(
    make_server: MakeServer, tmp_path: Path
) -> None:
    env = {
        "KERNELKEEP_TOKEN": "the environment's",
        "KERNELKEEP_ROOT_DIR": "/nonexistent",
        "KERNELKEEP_DEFAULT_KERNEL_NAME": "fake",
    }
    server = make_server(env=env)
    async with RestClient(server.url, server.token) as rest:
        assert (await rest.kernelspecs())["default"] == "fake"


def test_help_needs_nothing(home: Home) -> None:
    ended = run_server("--help", home=home)
    assert ended.returncode == 0
    assert ended.stderr == ""
    for option in ("--host", "--port", "--token", "--root-dir", "--state-dir"):
        assert option in ended.stdout


@pytest.mark.parametrize(("token", "is_warned_of"), [("t", True), ("0123456789abcdef", False)])
def test_a_token_that_can_be_guessed_is_warned_of(
    make_server: MakeServer, token: str, is_warned_of: bool
) -> None:
    class WithToken(ServerProcess):
        announcement = r"http://127\.0\.0\.1:(\d+)/\?token="

        @property
        def credentials(self) -> list[str]:
            return ["--token", token]

    server = make_server(kind=WithToken)
    server.stop()
    assert ("the token has fewer than 16 characters" in server.output()) is is_warned_of
    assert "shu[hidden]down" not in server.output()


# When it refuses


def test_a_port_in_use(commands: Commands, home: Home) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        sentence = refusal(commands.run("--port", str(port), home=home))
    assert sentence == f"cannot listen on 127.0.0.1 port {port}: Address already in use"


def test_an_address_that_is_not_ours(commands: Commands, home: Home) -> None:
    sentence = refusal(commands.run("--host", "192.0.2.1", "--port", "0", home=home))
    assert sentence.startswith("cannot listen on 192.0.2.1 port 0: ")


@pytest.mark.parametrize("host", ["a..b", "x" * 64])
def test_a_host_that_is_no_name(commands: Commands, home: Home, host: str) -> None:
    sentence = refusal(commands.run("--host", host, "--port", "0", home=home))
    assert sentence == "--host: is not the name or address of a host"


@pytest.mark.parametrize("name", ["none-such", "file"])
def test_a_root_directory_that_is_none(commands: Commands, home: Home, name: str) -> None:
    (home.path / "file").touch()
    path = home.path / name
    sentence = refusal(refused(commands, "--root-dir", str(path), "--port", "0", home=home))
    assert sentence == f"--root-dir: there is no directory {path}"


@pytest.mark.parametrize("name", ["file", "file/below"])
def test_a_state_directory_that_cannot_be_used(commands: Commands, home: Home, name: str) -> None:
    (home.path / "file").touch()
    path = home.path / name
    sentence = refusal(commands.run("--state-dir", str(path), "--port", "0", home=home))
    assert sentence.startswith(f"--state-dir: {path} cannot be used: ")


@pytest.mark.parametrize("name", ["runtime", "logs", "ipc", "run", "keeper", "keeper.6.1"])
def test_a_file_in_the_place_of_a_directory(commands: Commands, home: Home, name: str) -> None:
    path = home.state_dir / name
    path.touch(0o600)
    ended = refused(commands, "--on-shutdown", "keep", "--port", "0", home=home)
    assert refusal(ended) == f"--state-dir: {path} is no directory"


FILES = {
    "registry.lock": "--state-dir: {} cannot be used: Is a directory",
    "registry.sqlite": "--state-dir: {} cannot be used: ",
    "tokens.sqlite": "--state-dir: {} is not a file",
    "sessions.sqlite": "--state-dir: {} is not a file",
    "server.sock": "--state-dir: {} is a directory",
    ".writable": "--state-dir: {} cannot be used: Is a directory",
}


@pytest.mark.parametrize("name", FILES)
def test_a_directory_in_the_place_of_a_file(commands: Commands, home: Home, name: str) -> None:
    path = home.state_dir / name
    path.mkdir(0o700)
    sentence = refusal(refused(commands, "--on-shutdown", "keep", "--port", "0", home=home))
    assert sentence.startswith(FILES[name].format(path))


def test_no_kernelspec_at_all(home: Home) -> None:
    """On a machine where no kernel is installed, not even ipykernel beside the service."""
    site = home.path / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(
        "import sys\n"
        "import jupyter_core.paths as paths\n"
        "sys.modules['ipykernel'] = None\n"
        "paths.ENV_JUPYTER_PATH[:] = paths.SYSTEM_JUPYTER_PATH[:] = []\n"
    )
    ended = run_server("--port", "0", home=home, env={"PYTHONPATH": str(site)})
    assert "no kernelspec" in refusal(ended)
    assert "pip install ipykernel" in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["--port", "many"], "--port"),
        (["--port", "65536"], "--port"),
        (["--port", "-1"], "--port"),
        (["--port", ""], "--port"),
        (["--host", ""], "--host"),
        (["--auth", "password"], "--auth"),
        (["--transport", "pigeon"], "--transport"),
        (["--log-level", "loud"], "--log-level"),
        (["--restart-limit", "-1"], "--restart-limit"),
        (["--shutdown-wait-time", "0"], "--shutdown-wait-time"),
        (["--shutdown-wait-time", "nan"], "--shutdown-wait-time"),
        (["--kernel-info-timeout", "inf"], "--kernel-info-timeout"),
        (["--allow-origin-pat", "("], "--allow-origin-pat"),
        (["--local-hostnames", "[1"], "--local-hostnames"),
        (["--kernel-env-allow", '["PATH"'], "--kernel-env-allow"),
        (["--none-such"], "--none-such"),
        (["--none-such=1"], "--none-such"),
        (["argument"], "argument"),
        (["--port"], "--port"),
    ],
)
def test_a_wrong_option_is_named(
    commands: Commands, home: Home, arguments: list[str], option: str
) -> None:
    sentence = refusal(refused(commands, *arguments, home=home))
    assert option in sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "many"), ("OPEN_DOCS", "perhaps"), ("ROOT_DIR", "/none-such"), ("HOST", "")],
)
def test_a_wrong_value_in_the_environment_is_named(
    commands: Commands, home: Home, name: str, value: str
) -> None:
    env = {"KERNELKEEP_PORT": "0", f"KERNELKEEP_{name}": value}
    sentence = refusal(refused(commands, home=home, env=env))
    assert sentence.startswith(f"--{name.lower().replace('_', '-')}: ")


def test_two_wrong_options_are_two_sentences(commands: Commands, home: Home) -> None:
    ended = commands.run("--port", "many", "--restart-limit", "few", home=home)
    assert ended.returncode == 2
    lines = ended.stderr.splitlines()
    assert len(lines) == 2
    assert all(line.startswith("kernelkeep: --") for line in lines)


def test_a_wrong_value_is_not_repeated(commands: Commands, home: Home) -> None:
    ended = refused(commands, "--port", "sesame", "--auth", "sesame", home=home)
    assert ended.returncode == 2
    assert "sesame" not in ended.stderr


@pytest.mark.parametrize("mode", [0o775, 0o750, 0o755, 0o701])
def test_a_state_directory_that_others_can_use_is_refused(
    commands: Commands, home: Home, mode: int
) -> None:
    home.state_dir.chmod(mode)
    ended = refused(commands, "--state-dir", str(home.state_dir), "--port", "0", home=home)
    text = f"{home.state_dir} is open to others (mode {mode:04o}): chmod 0700 {home.state_dir}"
    assert text in refusal(ended)
    assert not [*home.state_dir.iterdir()]


@pytest.mark.parametrize("name", ["open", "file", "state/runtime"])
def test_under_uvicorn_a_state_directory_is_refused_in_one_line(
    commands: Commands, home: Home, name: str
) -> None:
    path = state_dir = home.path / name
    if name == "open":
        path.mkdir(mode=0o755)
        text = f"{path} is open to others (mode 0755): chmod 0700 {path}"
    else:
        path.touch(0o644)
        text = f"{path} is no directory"
    if name == "state/runtime":
        state_dir = home.state_dir
    env = {"KERNELKEEP_STATE_DIR": str(state_dir), "KERNELKEEP_ON_SHUTDOWN": "keep"}
    ended = commands.run("app.main:app", "--port", "0", home=home, env=env, module="uvicorn")
    assert refusal(ended) == f"--state-dir: {text}"


# How it ends


@pytest.mark.parametrize(
    ("kind", "number"),
    [
        *((ServerProcess, number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)),
        *((UvicornServer, number) for number in (signal.SIGTERM, signal.SIGINT)),
    ],
)
async def test_it_ends_cleanly(
    make_server: MakeServer, kind: type[ServerProcess], number: signal.Signals
) -> None:
    server = make_server(kind=kind)
    async with RestClient(server.url, server.token) as rest:
        await rest.start_kernel("fake")
        await rest.wait_for_state((await rest.kernels())[0]["id"], "idle")
        await rest.start_kernel("fake-slow")
    mark = server.mark()
    server.send_signal(number)
    code = server.wait()
    # uvicorn itself ends with the signal that stopped it.
    assert code == 0 if kind is ServerProcess else code in (0, -number)
    server.stop()  # looks for what is left
    assert "Traceback" not in server.output(mark)
    assert "ERROR" not in server.output(mark)


def test_it_can_be_stopped_twice(make_server: MakeServer) -> None:
    server = make_server()
    server.send_signal(signal.SIGTERM)
    server.send_signal(signal.SIGTERM)
    assert server.wait() in (0, -signal.SIGTERM)


@pytest.mark.parametrize("kind", [CommandServer, UvicornCommandServer])
async def test_the_same_service_runs_either_way(
    make_server: MakeServer, kind: type[ServerProcess]
) -> None:
    server = make_server(kind=kind)
    async with kernels_of(server) as start:
        kernel = await start("fake")
        for framing in ("legacy", "v1"):
            channels = await kernel.connect(framing=framing)
            assert (await channels.execute("print a")).text == "a\n"
        assert (await start.rest.status())["connections"] == 3


@pytest.mark.parametrize("kind", [ServerProcess, UvicornServer])
@pytest.mark.parametrize("on_shutdown", ["keep", "stop"])
def test_the_state_directory_is_made_and_private(
    home: Home, kind: type[ServerProcess], on_shutdown: str
) -> None:
    path = home.path / "new" / "state"

    home.state_dir = path
    old = os.umask(0)
    try:
        server = kind(env={"KERNELKEEP_ON_SHUTDOWN": on_shutdown}, home=home).start()
    finally:
        os.umask(old)
    server.stop()
    for directory in (path, *(found for found in path.rglob("*") if found.is_dir())):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700, directory
