"""Processes told apart from others of the same number, and their groups signalled.

These are the tests of `app.keeper.looking` and `app.keeper.sights`, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from functools import partial

import psutil
import pytest

from app.keeper import processes
from app.keeper.looking import user_of
from app.keeper.processes import (
    HAS_PIDFDS,
    HAS_PROC,
    child_process,
    open_process,
    start_time,
    states_of_group,
)
from tests.support.processes import eventually, eventually_sync, is_alive, own_descriptors

WAIT = 20  # seconds
NO_SUCH_FLAG = 1 << 30


@pytest.fixture
def leader() -> Iterator[subprocess.Popen[bytes]]:
    """The leader of a process group, with a child in it."""
    process = subprocess.Popen(["/bin/sh", "-c", "sleep 1000 & wait"], start_new_session=True)
    assert eventually_sync(lambda: psutil.Process(process.pid).children())
    yield process
    with contextlib.suppress(ProcessLookupError):  # the child may be left when the leader is gone
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
    process = open_process(leader.pid, started)
    assert process is not None
    (child,) = psutil.Process(leader.pid).children()
    try:
        if kernel == "old" or not HAS_PIDFDS:
            process.started = "another/1"
            with pytest.raises(ProcessLookupError):
                process.signal_group(signal.SIGKILL)
            process.started = started
            assert not process.has_ended()
        process.signal_group(signal.SIGTERM)
        assert leader.wait(WAIT) == -signal.SIGTERM
        assert eventually_sync(lambda: not is_alive(child.pid))
        assert process.has_ended()
        assert open_process(leader.pid, started) is None
    finally:
        process.close()


def test_a_process_of_another_start_is_another(leader: subprocess.Popen[bytes]) -> None:
    started = start_time(leader.pid)
    assert started is not None
    assert open_process(leader.pid, f"{started}0") is None
    if not HAS_PROC:
        return
    boot, _, ticks = started.partition("/")
    assert open_process(leader.pid, f"{boot}/{int(ticks) + 1}") is None
    assert open_process(leader.pid, f"another-boot/{ticks}") is None


def test_the_user_of_a_process_is_told(leader: subprocess.Popen[bytes]) -> None:
    assert user_of(leader.pid) == (os.getuid() if HAS_PROC else None)
    leader.kill()
    leader.wait(WAIT)
    assert user_of(leader.pid) is None


def test_the_states_of_a_group_are_told(leader: subprocess.Popen[bytes]) -> None:
    (child,) = psutil.Process(leader.pid).children()
    assert set(states_of_group(leader.pid)) == {leader.pid, child.pid}
    leader.kill()
    assert eventually_sync(lambda: states_of_group(leader.pid).get(leader.pid) == "Z")
    assert states_of_group(child.pid) == {}


def test_how_a_child_ended_is_known_although_it_was_not_seen_to_live() -> None:
    process = subprocess.Popen(["/bin/sh", "-c", "exit 7"])
    process.returncode = 0  # it is reaped here
    assert eventually_sync(lambda: psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE)
    child = child_process(process.pid)
    assert child.has_ended()
    assert child.exit_code() == 7
    child.close()
    assert not psutil.pid_exists(process.pid)


async def test_the_end_is_told_once(leader: subprocess.Popen[bytes]) -> None:
    started = start_time(leader.pid)
    assert started is not None
    told: list[int] = []
    before = own_descriptors()
    watched = []
    for number in range(2):
        process = open_process(leader.pid, started)
        assert process is not None
        process.watch(partial(told.append, number))
        watched.append(process)
    watched[1].unwatch()
    leader.kill()
    await eventually(lambda: told == [0], WAIT)
    leader.wait(WAIT)
    await asyncio.sleep(0.5)
    assert told == [0]
    for process in watched:
        assert process.has_ended()
        process.close()
    assert own_descriptors() == before
