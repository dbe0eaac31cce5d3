"""Processes told apart from others of the same number, and their groups signalled."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator

import psutil
import pytest

from app.keeper import processes
from app.keeper.processes import has_ended, open_process, signal_group, start_time
from tests.support.processes import eventually_sync, is_alive

WAIT = 20  # seconds
NO_SUCH_FLAG = 1 << 30


@pytest.fixture
def leader() -> Iterator[subprocess.Popen[bytes]]:
    """The leader of a process group, with a child in it."""
    process = subprocess.Popen(["/bin/sh", "-c", "sleep 1000 & wait"], start_new_session=True)
    assert eventually_sync(lambda: psutil.Process(process.pid).children())
    yield process
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(WAIT)


@pytest.mark.parametrize("kernel", ["new", "old"])
def test_a_signal_reaches_the_group_and_no_other(
    leader: subprocess.Popen[bytes], kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kernel == "old":  # Linux before 6.9 refuses the flag
        monkeypatch.setattr(processes, "_PROCESS_GROUP", NO_SUCH_FLAG)
    started = start_time(leader.pid)
    assert started is not None
    pidfd = open_process(leader.pid, started)
    assert pidfd is not None
    (child,) = psutil.Process(leader.pid).children()
    try:
        if kernel == "old":
            with pytest.raises(ProcessLookupError):
                signal_group(pidfd, leader.pid, "another/1", signal.SIGKILL)
            assert not has_ended(pidfd)
        signal_group(pidfd, leader.pid, started, signal.SIGTERM)
        assert leader.wait(WAIT) == -signal.SIGTERM
        assert eventually_sync(lambda: not is_alive(child.pid))
        assert has_ended(pidfd)
        assert open_process(leader.pid, started) is None
    finally:
        os.close(pidfd)


def test_a_process_of_another_start_is_another(leader: subprocess.Popen[bytes]) -> None:
    started = start_time(leader.pid)
    assert started is not None
    boot, _, ticks = started.partition("/")
    assert open_process(leader.pid, f"{boot}/{int(ticks) + 1}") is None
    assert open_process(leader.pid, f"another-boot/{ticks}") is None
