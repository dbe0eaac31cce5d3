"""The environment of a kernel: what is let through, what is refused, what stays behind."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.managers.errors import InvalidEnvironment
from app.managers.processes.environment import MAX_ENTRY_BYTES, MAX_TOTAL_BYTES, kernel_environment
from app.options import KERNEL_ENVIRONMENT

SERVER = {
    "PATH": "/bin",
    "LC_ALL": "C.UTF-8",
    "CUDA_VISIBLE_DEVICES": "0",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "KERNELKEEP_TOKEN": "secret",
    "kernelkeep_token": "secret",
    "path": "lower case",
}


def test_only_what_is_allowed_by_name_is_let_through() -> None:
    assert kernel_environment(SERVER, ["PATH", "LC_*", "HOME"], {}) == {
        "PATH": "/bin",
        "LC_ALL": "C.UTF-8",
    }
    assert kernel_environment(SERVER, [], {}) == {}


@pytest.mark.parametrize("pattern", ["*", "K*", "k*", "KERNELKEEP_TOKEN", "?ERNELKEEP_*"])
def test_the_servers_own_options_are_never_let_through(pattern: str) -> None:
    environment = kernel_environment(SERVER, [pattern], {})

    assert not {"KERNELKEEP_TOKEN", "kernelkeep_token"} & set(environment)


def test_no_secret_is_among_what_is_allowed_by_default() -> None:
    secrets = [
        *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "GITHUB_TOKEN", "GH_TOKEN", "PGPASSWORD"),
        *("JUPYTER_TOKEN", "JUPYTERHUB_API_TOKEN", "KG_AUTH_TOKEN", "OPENAI_API_KEY", "HF_TOKEN"),
        *(
            "GOOGLE_APPLICATION_CREDENTIALS",
            "AZURE_CLIENT_SECRET",
            "SSH_AUTH_SOCK",
            "PIP_INDEX_URL",
        ),
    ]

    assert kernel_environment(dict.fromkeys(secrets, "x"), KERNEL_ENVIRONMENT, {}) == {}


def test_what_a_client_asks_for_is_added_and_wins() -> None:
    environment = kernel_environment(SERVER, ["PATH"], {"PATH": "/mine", "KERNEL_ID": "1"})

    assert environment == {"PATH": "/mine", "KERNEL_ID": "1"}
    assert SERVER["PATH"] == "/bin"


@pytest.mark.parametrize(
    "name",
    [
        *("", "=", "A=B", "=A", "A\0", "A\n", "A\nB", " A", "A B", "1A", "-A", "Ä", "A\ud800"),
        *("A" * 10 + "=", "\x1b[31m", "A\t", "${A}", "A;B", "A/B"),
    ],
)
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidEnvironment, match="is not a name") as caught:
        kernel_environment({}, [], {name: "the value"})

    assert "the value" not in caught.value.message
    assert "\n" not in caught.value.message
    assert "\x1b" not in caught.value.message


def test_a_name_is_shown_only_so_far() -> None:
    with pytest.raises(InvalidEnvironment) as caught:
        kernel_environment({}, [], {"=" * 1_000_000: ""})

    assert len(caught.value.message) < 200


@pytest.mark.parametrize("name", ["A", "_", "a1", "KERNEL_X", "ProgramFiles(x86)", "A.B", "A-B"])
@pytest.mark.parametrize("value", ["", "x", "a=b", "two\nlines", "täxt", "\x1b[31m", "y" * 100_000])
def test_what_a_process_can_be_given_is_taken(name: str, value: str) -> None:
    assert kernel_environment({}, [], {name: value}) == {name: value}


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("a\0b", "NUL"),
        ("\0", "NUL"),
        ("\ud800", "Unicode"),
        ("x" * 2**20, "larger than"),
        ("ä" * (MAX_ENTRY_BYTES // 2), "larger than"),
    ],
)
def test_a_value_that_no_process_can_be_given_is_refused(value: str, why: str) -> None:
    with pytest.raises(InvalidEnvironment, match=why) as caught:
        kernel_environment({}, [], {"NAME": value})

    assert "'NAME'" in caught.value.message
    assert len(caught.value.message) < 200


def test_all_values_together_are_bounded() -> None:
    entries = {f"N{number}": "x" * 100_000 for number in range(MAX_TOTAL_BYTES // 100_000 + 1)}

    with pytest.raises(InvalidEnvironment, match="all entries"):
        kernel_environment({}, [], entries)
    entries.popitem()
    assert len(kernel_environment({}, [], entries)) == len(entries)


def test_the_largest_entry_that_is_taken_starts_a_process() -> None:
    largest = "x" * (MAX_ENTRY_BYTES - len("NAME="))
    environment = kernel_environment(os.environ, ["PATH", "LD_LIBRARY_PATH"], {"NAME": largest})

    command = [sys.executable, "-S", "-c", "import os; print(len(os.environ['NAME']))"]
    ended = subprocess.run(command, env=environment, capture_output=True, timeout=30, check=True)

    assert int(ended.stdout) == len(largest)
    with pytest.raises(InvalidEnvironment):
        kernel_environment({}, [], {"NAME": largest + "x"})


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=4))
def test_any_request_is_taken_whole_or_refused(requested: dict[str, str]) -> None:
    try:
        environment = kernel_environment(SERVER, ["PATH"], requested)
    except InvalidEnvironment as error:
        assert error.status == 400  # noqa: PT017
        return
    assert environment == {"PATH": "/bin", **requested}
    assert all("\0" not in text and "=" not in name for name, text in environment.items())
