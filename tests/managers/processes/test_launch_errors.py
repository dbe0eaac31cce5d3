"""What a start is answered whose launch has failed: descriptors that ran out have a code."""

from __future__ import annotations

import errno
import os
import resource

import pytest
import zmq

from app.managers.errors import KernelStartFailed
from app.managers.processes.hosts.errors import HostUnreachable
from app.managers.processes.launch_errors import TooManyOpenFiles, described, launch_failed


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, os.strerror(errno.EMFILE)), zmq.ZMQError(errno.EMFILE)]
)
def test_descriptors_that_ran_out_are_told_with_their_limit(error: Exception) -> None:
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    found = launch_failed(error, "; and more")
    assert isinstance(found, TooManyOpenFiles)
    assert (found.status, found.code) == (503, "too_many_open_files")
    assert "Too many open files; and more. " in found.message
    assert f"{limit} open (RLIMIT_NOFILE)" in found.message


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(errno.ENOENT, "it is not there", "x"), "[Errno 2] it is not there: 'x'"),
        (OSError(), "OSError: "),
        (zmq.ZMQError(errno.EADDRINUSE), "ZMQError: Address already in use"),
    ],
)
def test_anything_else_is_a_start_that_failed(error: Exception, text: str) -> None:
    found = launch_failed(error)
    assert type(found) is KernelStartFailed
    assert (found.status, found.code, found.details) == (500, "kernel_start_failed", {})
    assert found.message == f"The kernel could not be launched: {text}"


def test_a_cause_with_a_code_is_told() -> None:
    error = HostUnreachable("nobody answers")
    assert described(error) == error.message
    assert launch_failed(error).details == {"cause": error.code}
