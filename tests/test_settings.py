"""The options: where they are read from, and every wrong value refused in a line that names it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le, MinLen
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError

from app.isolation_options import id_range
from app.settings import Settings, explain

Read = Callable[[str, str], Settings]

FIELDS = Settings.model_fields


@pytest.fixture(autouse=True)
def _nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No option of whoever runs the tests, and a current directory of our own."""
    for name in os.environ:
        if name.upper().startswith("KERNELKEEP_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def flags(*arguments: str) -> Settings:
    return Settings(_cli_parse_args=list(arguments))


def flag_of(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def from_flag(name: str, value: str) -> Settings:
    return flags(f"{flag_of(name)}={value}")


def from_environment(name: str, value: str) -> Settings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(f"KERNELKEEP_{name.upper()}", value)
        return Settings()


every_source = pytest.mark.parametrize("read", [from_flag, from_environment])


def refusal(read: Callable[[], Settings]) -> str:
    """The one line with which options are refused."""
    with pytest.raises((ValidationError, SettingsError)) as caught:
        read()
    error = caught.value
    assert isinstance(error, ValidationError | SettingsError)
    (line,) = explain(error).splitlines()
    return line


# What each option refuses


def kinds(field: FieldInfo) -> list[Any]:
    """The types that an option may have, without None."""
    annotation = field.annotation
    types = get_args(annotation) if get_origin(annotation) is UnionType else (annotation,)
    return [kind for kind in types if kind is not NoneType]


def wrong_values(field: FieldInfo) -> Iterator[str]:
    """Values that an option cannot have, from its type and its bounds."""
    (kind,) = kinds(field)
    if kind is int:
        yield from ("several", "1.5", "", "0x10", "1e3", "1 2", "९" * 3 + "x")
    elif kind is float:
        yield from ("several", "", "nan", "inf", "-inf", "1,5")
    elif kind is bool:
        yield from ("perhaps", "", "2", "None of it")
    elif get_origin(kind) is Literal:
        yield from ("pigeon", "", get_args(kind)[0].upper())
    for bound in field.metadata:
        match bound:
            case Ge(ge=limit):
                yield str(int(str(limit)) - 1)
            case Gt(gt=limit):
                yield str(limit)
            case Le(le=limit):
                yield str(int(str(limit)) + 1)
            case MinLen(min_length=1):
                yield ""


WRONG = [(name, value) for name, field in FIELDS.items() for value in wrong_values(field)]


def test_the_wrong_values_are_of_every_kind() -> None:
    wrong = set(WRONG)

    assert {("port", "-1"), ("port", "65536"), ("auth", "pigeon"), ("autorestart", "2")} <= wrong
    assert {("host", ""), ("log_bytes", "65535"), ("shutdown_wait_time", "0")} <= wrong
    assert {("allow_remote_access", "perhaps"), ("kernel_info_timeout", "inf")} <= wrong


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_value_in_the_environment_is_refused(name: str, value: str) -> None:
    line = refusal(lambda: from_environment(name, value))

    assert line.startswith(f"{flag_of(name)}: ")
    assert len(value) < 6 or value not in line


@pytest.mark.parametrize(
    ("name", "value"),
    [(n, v) for n, v in WRONG if v in ("several", "pigeon", "0", "-1")],
)
def test_a_wrong_value_of_a_flag_is_refused(name: str, value: str) -> None:
    line = refusal(lambda: from_flag(name, value))

    assert line.startswith(f"{flag_of(name)}: ")
    assert len(value) < 6 or value not in line


def test_several_wrong_values_are_a_line_each() -> None:
    with pytest.raises(ValidationError) as caught:
        flags("--port", "many", "--auth", "password", "--log-bytes", "few")

    lines = explain(caught.value).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["--port", "--auth", "--log-bytes"]


@every_source
@pytest.mark.parametrize("value", ["(", "[a", "*", "(?P<x", "a{2,1}"])
def test_a_pattern_that_is_none_is_refused(read: Read, value: str) -> None:
    line = refusal(lambda: read("allow_origin_pat", value))

    assert line.startswith("--allow-origin-pat: not a regular expression: ")


@every_source
@pytest.mark.parametrize("value", ["auto,python3", "python3,none", "AUTO,none", "two words", "a/b"])
def test_kernelspecs_to_fork_are_names_or_one_word(read: Read, value: str) -> None:
    line = refusal(lambda: read("fork_kernels", value))

    assert line.startswith("--fork-kernels: ")


@every_source
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("auto", []),
        ("NONE", []),
        ("", []),
        ("python3, ir", ["python3", "ir"]),
        ("auto2", ["auto2"]),
    ],
)
def test_only_names_are_forked_by_name(read: Read, value: str, expected: list[str]) -> None:
    assert read("fork_kernels", value).forked_by_name == expected


def test_code_may_not_run_longer_by_default_than_at_the_most() -> None:
    longest = ("--execution-timeout-max", "9")
    line = refusal(lambda: flags(*longest, "--execution-timeout-default", "9.5"))
    assert "execution_timeout_default: 9.5 s" in line
    assert flags(*longest, "--execution-timeout-default", "9").execution_timeout_default == 9
    assert flags("--execution-timeout-default", "9.5").execution_timeout_max == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--tokn", "5ecret"],
        ["--tokn=5ecret"],
        ["--toke", "5ecret"],
        ["--port", "1", "--tokn", "5ecret", "--x"],
        ["-t", "5ecret"],
        ["5ecret"],
        ["--open-docs", "5ecret"],
        ["--token", "-5ecret"],
        ["--port", "--token=5ecret"],
        ["--root_dir", "5ecret"],
    ],
)
def test_flags_that_there_are_not_are_refused_and_no_value_is_told(arguments: list[str]) -> None:
    line = refusal(lambda: flags(*arguments))

    assert "5ecret" not in line
    assert len(line) < 100


def test_an_unknown_flag_is_named() -> None:
    assert refusal(lambda: flags("--tokn", "x")) == "--tokn: not known; see --help"
    assert refusal(lambda: flags("--a=1", "--b")) == "--a, --b: not known; see --help"
    assert refusal(lambda: flags("--port")) == "--port: expected one argument"


# Where they come from


def test_the_defaults_are_safe() -> None:
    settings = flags()

    assert (settings.host, settings.port) == ("127.0.0.1", 8888)
    assert settings.listens_on_loopback
    assert not settings.any_host
    assert settings.auth == "token"
    assert settings.root_dir == Path.cwd()
    assert settings.state_dir.is_absolute()
    assert not settings.open_docs
    assert (settings.allow_origin, settings.allow_origin_pat) == ("", "")
    assert settings.allow_credentials is False


def test_a_flag_wins_over_the_environment_and_that_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("KERNELKEEP_PORT", "1001")
    monkeypatch.setenv("KERNELKEEP_HOST", "localhost")

    assert (flags().host, flags().port) == ("localhost", 1001)
    assert (flags("--port", "1002").host, flags("--port", "1002").port) == ("localhost", 1002)


def test_without_flags_the_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELKEEP_RESTART_LIMIT", "0")
    monkeypatch.setenv("KERNELKEEP_NO_SUCH_OPTION", "x")
    monkeypatch.setenv("RESTART_LIMIT", "7")

    assert Settings().restart_limit == 0


@pytest.mark.parametrize(
    ("arguments", "value"),
    [([], True), (["--autorestart"], True), (["--no-autorestart"], False)],
)
def test_a_switch_has_two_flags(arguments: list[str], value: bool) -> None:
    assert flags(*arguments).autorestart is value


@pytest.mark.parametrize(("text", "value"), [("1", True), ("no", False), ("TRUE", True)])
def test_a_switch_in_the_environment_has_many_words(text: str, value: bool) -> None:
    assert from_environment("autorestart", text).autorestart is value


@every_source
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b", ["a", "b"]),
        (" a , b ,, ", ["a", "b"]),
        ("a", ["a"]),
        ("", []),
        ('["a", "b,c"]', ["a", "b,c"]),
        ("[]", []),
    ],
)
def test_a_list_may_be_written_with_commas_or_as_json(
    read: Read, text: str, words: list[str]
) -> None:
    assert read("local_hostnames", text).local_hostnames == words


def test_a_list_may_be_given_a_piece_at_a_time() -> None:
    settings = flags("--local-hostnames", "a", "--local-hostnames", "b")

    assert settings.local_hostnames == ["a", "b"]


@every_source
@pytest.mark.parametrize("text", ['["a"', "[a]", "[" * 100_000, '["a"]]'])
def test_json_that_is_none_is_refused(read: Read, text: str) -> None:
    line = refusal(lambda: read("local_hostnames", text))

    assert line == "--local-hostnames: not a JSON list of strings"


@every_source
@pytest.mark.parametrize("text", ['[{"a": 1}]', "[1]", "[null]"])
def test_a_list_of_something_else_is_refused(read: Read, text: str) -> None:
    line = refusal(lambda: read("local_hostnames", text))

    assert line.startswith("--local-hostnames.0: ")


def test_kernels_are_kept_unless_it_is_said_otherwise_or_of_no_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert flags().keeps
    assert not flags("--on-shutdown", "stop").keeps
    with monkeypatch.context() as patch:
        patch.setattr("app.settings.network_file_system", lambda path: path == tmp_path and "nfs")
        below = ("--state-dir", str(tmp_path / "not" / "yet"))
        assert "network file system (nfs)" in flags(*below).why_not_kept
        assert flags(*below, "--on-shutdown", "keep").keeps
    with monkeypatch.context() as patch:
        patch.setattr("app.settings.os.getpid", lambda: 1)
        assert "process 1" in flags().why_not_kept


APART = ("--isolation", "user", "--isolation-uids", "200000-265535", "--isolation-dir", "/homes")


@pytest.mark.parametrize(
    ("given", "option"),
    [
        (("--isolation", "bubblewrap"), "isolation_dir"),
        (("--isolation", "user", "--isolation-dir", "/homes"), "isolation_uids"),
        ((*APART, "--isolation-dir", "/homes/of/all", "--state-dir", "/homes"), "isolation_dir"),
        ((*APART, "--state-dir", "/homes/state"), "isolation_dir"),
        ((*APART, "--root-dir", "/"), "isolation_dir"),
        ((*APART, "--warm-kernels", "python3=1"), "warm_kernels"),
        ((*APART, "--fork-kernels", "python3"), "fork_kernels"),
        ((*APART, "--allow-external-kernels"), "allow_external_kernels"),
        ((*APART, "--isolation", "bubblewrap", "--transport", "tcp"), "transport"),
    ],
)
def test_what_cannot_be_isolated_is_refused(given: tuple[str, ...], option: str) -> None:
    assert refusal(lambda: flags(*given)).startswith(f"{option}: ")


def test_what_can_be_isolated_is_not() -> None:
    assert flags(*APART).isolation == "user"
    assert flags(*APART, "--fork-kernels", "none", "--transport", "tcp").transport == "tcp"
    assert flags(*APART, "--root-dir", "/", "--no-allow-contents").isolation_dir == Path("/homes")
    assert flags(*APART, "--root-dir", "/", "--files-by-owner").isolation_dir == Path("/homes")
    boxed = (*APART, "--isolation", "bubblewrap")
    assert (flags(*boxed).only_ipc, flags(*boxed, "--isolation-network").only_ipc) == (True, False)


@pytest.mark.parametrize("value", ["5", "9-5", "0-5", "a-b", "1-4294967295", "1-2-3", "-1-5"])
def test_ids_of_owners_are_a_range(value: str) -> None:
    line = refusal(lambda: from_environment("isolation_uids", value))
    assert line.startswith("--isolation-uids: not ")
    assert id_range("5-7") == range(5, 8)


def test_a_platform_without_what_it_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.settings.RUNS_HERE", False)
    assert refusal(flags) == "this takes Linux or macOS"


def test_options_do_not_change_while_the_server_runs() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        flags().port = 1  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_every_option_has_a_sentence(name: str) -> None:
    description = FIELDS[name].description

    assert description
    assert description.endswith(".")


# Directories


def test_directories_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "link").symlink_to("root")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert flags("--root-dir", "root").root_dir == tmp_path.resolve() / "root"
    assert flags("--root-dir", "link/../root").root_dir == tmp_path.resolve() / "root"
    assert flags("--root-dir", "link").root_dir == tmp_path.resolve() / "root"
    assert flags("--root-dir", "~/root").root_dir == tmp_path.resolve() / "root"
    assert flags("--state-dir", "~/not/yet").state_dir == tmp_path.resolve() / "not" / "yet"


@every_source
@pytest.mark.parametrize(
    "value", ["missing", "file", "file/x", "x" * 5000, "~nobody-of-this-name/x"]
)
def test_a_root_that_is_no_directory_is_refused(read: Read, tmp_path: Path, value: str) -> None:
    (tmp_path / "file").touch()

    assert refusal(lambda: read("root_dir", value)).startswith("--root-dir: ")


@every_source
def test_a_loop_of_links_is_no_root(read: Read, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")

    assert refusal(lambda: read("root_dir", "loop")).startswith("--root-dir: ")


def test_a_name_that_no_file_can_have_is_refused() -> None:
    assert refusal(lambda: from_flag("root_dir", "a\0b")).startswith("--root-dir: ")
    assert refusal(lambda: from_flag("state_dir", "a\0b")).startswith("--state-dir: ")
    assert refusal(lambda: from_flag("state_dir", "~nobody-of-this-name")).startswith("--state-dir")


# Who may come in

LOOPBACK = ["127.0.0.1", "127.1.2.3", "::1", "[::1]", "localhost"]
ELSEWHERE = [
    *("0.0.0.0", "::", "[::]", "192.168.1.1", "example.org", "127.0.0.1.example.org", "127.1"),
    *("localhost.example.org", "2130706433", "fe80::1", " 127.0.0.1x"),
]


@pytest.mark.parametrize("host", LOOPBACK)
def test_without_a_token_it_may_listen_on_loopback(host: str) -> None:
    settings = flags("--auth", "none", "--host", host)

    assert settings.listens_on_loopback
    assert not settings.any_host


@every_source
@pytest.mark.parametrize("host", ELSEWHERE)
def test_without_a_token_it_listens_nowhere_else(
    read: Read, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERNELKEEP_AUTH", "none")

    line = refusal(lambda: read("host", host))

    assert line == f"auth=none is refused on {host}: it is not a loopback address"


@pytest.mark.parametrize("host", LOOPBACK + ELSEWHERE)
def test_any_host_may_be_named_where_others_can_connect(host: str) -> None:
    remote = host in ELSEWHERE

    assert flags("--host", host).any_host is remote
    assert flags("--host", host, "--allow-remote-access", "true").any_host
    assert not flags("--host", host, "--allow-remote-access", "false").any_host


@every_source
def test_no_authentication_and_a_token_exclude_each_other(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERNELKEEP_AUTH", "none")

    assert refusal(lambda: read("token", "5ecret")) == "auth=none and a token exclude each other"


def test_the_token_is_shown_by_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELKEEP_TOKEN", "5ecret")
    settings = flags()

    assert settings.token.get_secret_value() == "5ecret"
    assert "5ecret" not in f"{settings!r} {settings} {settings.model_dump()}"
    assert "5ecret" not in settings.model_dump_json()
    line = refusal(lambda: flags("--port", "5ecret"))
    assert "5ecret" not in line


@every_source
@pytest.mark.parametrize("token", ['{"a": 1}', "[1]", "null", "1", "-x", "a b", "ä", "'", "a,b"])
def test_a_token_is_taken_as_it_is_written(read: Read, token: str) -> None:
    assert read("token", token).token.get_secret_value() == token


@pytest.mark.parametrize(
    "token", [" a", "a ", "a\tb", "a\nb", "a\x7f", "\x1b", "a\u2028b", "\ud800"]
)
def test_a_token_that_no_header_can_carry_is_refused(token: str) -> None:
    with pytest.raises(ValidationError, match="no client can send a token with such a character"):
        Settings(token=SecretStr(token), _cli_parse_args=False)


def test_what_others_dial_takes_a_registry_and_a_place_to_listen() -> None:
    for arguments, refusal in (
        (["--replica-listen", "127.0.0.1:0"], "replica_listen: not without registry_url"),
        (["--replica-address", "host"], "replica_address: not without replica_listen"),
        (["--replica-certificate", __file__], "replica_certificate: not without replica_listen"),
    ):
        with pytest.raises(ValidationError, match=refusal):
            flags(*arguments)
    registry = ["--registry-url", "postgresql://user@host/name", "--on-shutdown", "keep"]
    listening = ["--token", "a token", "--replica-listen", "[::1]:8889", "--replica-address", "a"]
    assert flags(*registry, *listening).replica_address == "a"


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["--allow-external-kernels"], "none could take them over"),
        (["--database-filepath", "sessions.sqlite"], "the sessions are of all replicas"),
        (["--on-shutdown", "stop"], "other replicas take kernels over that are kept"),
    ],
)
def test_what_is_not_shared_with_replicas_is_refused_with_the_reason(
    arguments: list[str], refused: str
) -> None:
    registry = ["--registry-url", "postgresql://user@host/name", "--on-shutdown", "keep"]
    with pytest.raises(ValidationError, match=refused):
        flags(*registry, "--token", "a token", *arguments)
