"""What jobs and engines say of an end."""

from __future__ import annotations

import pytest

from app.managers.processes.engines.last_words import (
    WORDS,
    is_full,
    is_without_program,
    own_word,
    with_exit,
)
from app.managers.processes.hosts.errors import HostUnusable, HostWithoutPython

LACKS = 'kernelkeep: {"failed": "host_without_python", "text": "it lacks pyzmq"}'


def test_what_the_program_of_a_job_says_is_found_among_other_lines() -> None:
    found = own_word(f"noise\nkernelkeep: not JSON\n{LACKS}\nmore")
    assert isinstance(found, HostWithoutPython)
    assert found.message == "it lacks pyzmq"
    unknown = own_word('kernelkeep: {"failed": "new", "text": "t"}')
    assert type(unknown) is HostUnusable
    assert own_word("noise\nkernelkeep: {") is None


def test_what_a_kernel_writes_in_the_same_form_has_a_bound() -> None:
    found = own_word('kernelkeep: {"failed": "host_unusable", "text": "%s"}' % ("x" * 2 * WORDS))
    assert found is not None
    assert len(found.message) == WORDS


def test_disks_and_programs() -> None:
    assert is_full("write /var/lib: no space left on device")
    assert not is_full("denied")
    assert is_without_program('exec: "python3": executable file not found in $PATH')
    assert is_without_program("crun: executable file `python3` not found in $PATH")
    assert not is_without_program("denied")


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (137, "was killed by signal 9 (SIGKILL)"),
        (3, "ended with status 3"),
        (250, "ended with status 250"),
        (None, "has ended"),
    ],
)
def test_an_exit_status_is_told(code: object, words: str) -> None:
    assert with_exit(code) == words
