"""The configuration file: what it may say, what counts more, and when it is not read at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from app.config_file import CONFIG_FILE, MAX_BYTES, UnusableConfigFile
from app.kernels_cli import kernels_command
from app.options import GROUPS
from app.settings import Settings
from tests.conftest import MakeServer
from tests.support.commands import Commands
from tests.support.home import Home
from tests.support.option_files import WriteOptions, flags, refusal
from tests.support.rest import RestClient
from tests.support.server import ServerProcess, UvicornServer

# What it says


def test_a_flag_counts_more_than_the_environment_and_that_more_than_the_file(
    write_options: WriteOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_options("port = 1\nmax_kernels = 1\nrestart_limit = 1\nwarm_kernels = {a = 1}\n")
    monkeypatch.setenv("KERNELKEEP_PORT", "2")
    monkeypatch.setenv("KERNELKEEP_MAX_KERNELS", "2")
    found = flags("--port", "3", "--warm-kernels", "b=1")

    assert (found.port, found.max_kernels, found.restart_limit) == (3, 2, 1)
    assert found.warm_kernels == {"b": 1}
    assert found.config == path
    assert Settings().port == 2


def test_an_option_stands_at_the_top_or_in_the_table_of_its_group(
    write_options: WriteOptions,
) -> None:
    write_options(
        'cull_interval = 7\nlocal_hostnames = ["a", "b"]\nkernel_argv = "c,d"\nopen_docs = true\n'
        "[culling]\ncull_idle_timeout = 600\ncull_connected = true\n"
        '[log]\nlog_format = "json"\n[keeper]\n'
    )
    found = Settings()

    assert (found.cull_interval, found.cull_idle_timeout, found.cull_connected) == (7, 600, True)
    assert (found.local_hostnames, found.kernel_argv) == (["a", "b"], ["c", "d"])
    assert (found.log_format, found.open_docs) == ("json", True)


def test_every_option_is_in_one_group() -> None:
    names = [name for group in GROUPS for name in group.model_fields]

    assert len(names) == len(set(names))
    assert set(names) == set(Settings.model_fields)
    assert {group.table for group in GROUPS} == {
        *("", "identity", "jupyterhub", "oidc", "limits", "isolation"),
        *("culling", "websocket", "execution", "keeper", "agents", "replicas", "log"),
    }


def test_the_file_that_is_named_is_the_only_one_read(
    write_options: WriteOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_options("port = 1\nmax_kernels = 1\n")
    write_options("port = 2\n", "other.toml")
    write_options("port = 3\n", "third.toml")

    assert flags("--config", "other.toml").port == 2
    assert flags("--config", "other.toml").max_kernels == 0
    monkeypatch.setenv("KERNELKEEP_CONFIG", "other.toml")
    assert Settings().port == 2
    assert flags("--config", "third.toml").port == 3
    assert Settings(config=Path("third.toml")).port == 3


def test_without_a_file_there_is_none(write_options: WriteOptions, tmp_path: Path) -> None:
    assert Settings().config is None
    (tmp_path / CONFIG_FILE).symlink_to("nowhere")
    assert refusal() == f"{tmp_path / CONFIG_FILE}: No such file or directory"


def test_where_nobody_can_look_there_is_none(
    write_options: WriteOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert Settings(root_dir=tmp_path).config is None


# What it may not say


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot = 1", "prot: not known; is port meant?"),
        ("cull-interval = 1", "cull-interval: not known; is cull_interval meant?"),
        ("[culling]\nidle = 1", "[culling] idle: not known"),
        ("[no_such_group]\n", "no_such_group: not known"),
        ('config = "x"', "config: not known"),
        ('"a\\nb\\u001b" = 1', r"'a\nb\x1b': not known"),
        ("culling = 1", "culling: it is a group of options, so a table: [culling]"),
        ("[[culling]]\n", "culling: it is a group of options, so a table: [culling]"),
        ("[log]\ncull_busy = true", "[log] cull_busy: its place is in [culling] or at the top"),
        ("[log]\nport = 1", "[log] port: its place is at the top"),
        (
            "cull_busy = true\n[culling]\ncull_busy = true",
            "cull_busy: given twice, at the top and in [culling]",
        ),
        ("port = 1\nhost = '::1'\nport = 2", "port: given twice (line 3)"),
        ("[log]\n[log]\n", "it is no TOML: Cannot declare ('log',) twice (at line 2, column 5)"),
        ("port", "it is no TOML: Expected '=' after a key in a key/value pair (at end of"),
        ("a = " + "[" * 5000, "it is nested too deeply"),
        ("port = true", "port: true and false are for switches"),
        ("kernel_ws_protocol = true", "kernel_ws_protocol: true and false are for switches"),
        ("#" * (MAX_BYTES + 1), f"it has more than {MAX_BYTES} bytes"),
    ],
)
def test_what_makes_no_sense_is_named_in_one_line(
    write_options: WriteOptions, text: str, says: str
) -> None:
    path = write_options(text)

    assert refusal().startswith(f"{path}: {says}")
    assert refusal("--config", str(path)).removeprefix("--config: ").startswith(f"{path}: {says}")


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("port = 65536", "--port"),
        ("port = 1.5", "--port"),
        ("host = 1", "--host"),
        ("cull_interval = nan", "--cull-interval"),
        ("cull_interval = 2026-01-01", "--cull-interval"),
        ("open_docs = 'perhaps'", "--open-docs"),
        ("local_hostnames = [1]", "--local-hostnames.0"),
        ("warm_kernels = {python3 = true}", "--warm-kernels"),
        ("[log]\nlog_level = 'loud'", "--log-level"),
    ],
)
def test_a_wrong_value_is_refused_as_it_is_elsewhere(
    write_options: WriteOptions, text: str, option: str
) -> None:
    write_options(text)

    assert refusal().startswith(f"{option}: ")


def test_what_is_not_utf8_is_refused(write_options: WriteOptions) -> None:
    write_options("").write_bytes(b"host = '\xff'")

    assert refusal().endswith(": it is not UTF-8")


# What is not read


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o622])
def test_a_file_that_others_can_write_is_refused(write_options: WriteOptions, mode: int) -> None:
    path = write_options("port = 1", mode=mode)

    assert refusal() == f"{path}: others can write it (mode {mode:04o}): chmod go-w {path}"


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_token_needs_a_file_that_nobody_else_can_read(
    write_options: WriteOptions, mode: int
) -> None:
    path = write_options("token = '5ecret'", mode=mode)

    line = refusal()
    assert line.endswith(
        f"it holds the token and is open to others (mode {mode:04o}): chmod 0600 {path}"
    )
    assert "5ecret" not in line
    path.chmod(0o600)
    assert Settings().token.get_secret_value() == "5ecret"


@pytest.mark.parametrize("linked", [False, True])
def test_a_file_of_another_user_is_refused(
    write_options: WriteOptions, monkeypatch: pytest.MonkeyPatch, linked: bool
) -> None:
    path = write_options("port = 1", "other.toml" if linked else CONFIG_FILE)
    if linked:
        path.with_name(CONFIG_FILE).symlink_to(path)
    name = path.with_name(CONFIG_FILE)
    if os.geteuid() == 0:
        os.chown(name, 12345, -1, follow_symlinks=False)
    else:
        monkeypatch.setattr("app.config_file.os.geteuid", lambda: 12345)

    assert refusal() == f"{name}: it belongs to another user, and is not read"


def test_what_is_no_file_is_refused(write_options: WriteOptions, tmp_path: Path) -> None:
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")

    missing = refusal("--config", "none.toml")
    assert missing == f"--config: {tmp_path / 'none.toml'}: No such file or directory"
    assert refusal("--config", "") == f"--config: {tmp_path}: Is a directory"
    assert refusal("--config", "directory").endswith("directory: Is a directory")
    assert refusal("--config", "pipe").endswith("pipe: it is no file")
    assert refusal("--config", "loop").startswith(f"--config: {tmp_path / 'loop'}: ")
    assert refusal("--config", "~nobody-of-this-name/x").startswith("--config: ")
    with pytest.raises(UnusableConfigFile, match="null"):
        Settings(config=Path("a\0b"))


# The command, and the application under uvicorn


@pytest.mark.parametrize("kind", [ServerProcess, UvicornServer])
async def test_both_ways_to_serve_read_it(
    make_server: MakeServer, kind: type[ServerProcess], tmp_path: Path
) -> None:
    path = tmp_path / "options.toml"
    path.write_text('default_kernel_name = "fake"\n')
    path.chmod(0o600)
    server = make_server(kind=kind, env={"KERNELKEEP_CONFIG": str(path)})
    async with RestClient(server.url, server.token) as rest:
        assert (await rest.kernelspecs())["default"] == "fake"
    if kind is ServerProcess:
        assert f"Configuration: {path}\n" in server.output()


def test_the_command_ends_with_2_and_one_line(commands: Commands, home: Home) -> None:
    path = home.path / "options.toml"
    path.write_text("prot = 1\n")
    for arguments in (("--config", str(path)), ("kernels", "list", "--config", str(path))):
        ended = commands.run(*arguments, home=home)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr == f"kernelkeep: {path}: prot: not known; is port meant?\n"


def test_kernels_are_found_where_the_file_says(
    write_options: WriteOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = write_options('state_dir = "mine"\n', "other.toml")
    asked: list[Path] = []
    monkeypatch.setattr("app.kernels_cli._list", lambda state_dir, **_: asked.append(state_dir))
    with pytest.raises(SystemExit, match="0"):
        kernels_command(["list", "--config", str(path)])
    assert asked == [tmp_path / "mine"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("--port", "1", "--port", "2"),
        ("--port=1", "--host", "::1", "--port=1"),
        ("--open-docs", "--no-open-docs"),
        ("--no-open-docs", "--no-open-docs"),
    ],
)
def test_a_flag_that_is_given_twice_is_named(
    commands: Commands, home: Home, arguments: tuple[str, ...]
) -> None:
    ended = commands.run(*arguments, home=home)
    flag = arguments[-1] if arguments[-1].endswith("docs") else "--port"
    assert ended.returncode == 2
    assert ended.stderr == f"kernelkeep: {flag}: given twice\n"


def test_under_uvicorn_it_ends_with_2_and_one_line(commands: Commands, home: Home) -> None:
    path = home.path / "options.toml"
    path.write_text("[log]\nlog_levle = 'info'\n")
    env = {"KERNELKEEP_CONFIG": str(path)}
    ended = commands.run("app.main:app", "--port", "0", home=home, env=env, module="uvicorn")
    assert ended.returncode == 2
    said = "[log] log_levle: not known; is log_level meant?"
    assert ended.stderr == f"kernelkeep: {path}: {said}\n"


# The files API


async def test_the_files_api_neither_shows_nor_changes_it(
    make_server: MakeServer, home: Home
) -> None:
    directory = home.root_dir / "conf"
    directory.mkdir()
    path = directory / "options.toml"
    path.write_text("max_kernels = 3\n")
    text = {"type": "file", "format": "text", "content": "max_kernels = 4\n"}
    server = make_server("--config", str(path), home=home)
    async with RestClient(server.url, server.token) as rest:
        contents = f"{server.url}/api/contents"
        assert (await rest.http.get(f"{contents}/conf")).json()["content"] == []
        assert (await rest.http.get(f"{contents}/conf/options.toml")).status_code == 404
        for method, url, body in (
            ("PUT", f"{contents}/conf/options.toml", text),
            ("DELETE", f"{contents}/conf/options.toml", None),
            ("PATCH", f"{contents}/conf", {"path": "other"}),
            ("DELETE", f"{contents}/conf", None),
        ):
            response = await rest.http.request(method, url, json=body)
            assert response.status_code in (400, 404), (method, url)
    assert path.read_text() == "max_kernels = 3\n"
