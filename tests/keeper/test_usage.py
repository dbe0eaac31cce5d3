"""What is told of processes: their time, memory, threads and files."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from app.keeper import usage
from app.keeper.groups import Group
from app.keeper.usage import Usage, _by_ps, load, processes_of, sample, seconds_of
from tests.keeper.conftest import Open, ended, launch
from tests.support.groups import FakeGroups
from tests.support.home import Home
from tests.support.processes import eventually


@contextmanager
def program(code: str) -> Iterator[int]:
    """A process that runs this, and has said so."""
    text = f"{code}\nprint('ready', flush=True)\ninput()\n"
    with subprocess.Popen(
        [sys.executable, "-c", text],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        yield process.pid
        process.stdin.write("\n")
        process.stdin.flush()
        process.wait(10)


async def test_a_process_is_told_by_what_it_has() -> None:
    with program("a = bytearray(64 * 2**20)") as pid:
        less = await sample(pid, None)
    with program(
        "import threading, time\n"
        "a = bytearray(64 * 2**20)\n"
        "more = b'x' * 2**26\n"
        "files = [open('/dev/null') for _ in range(50)]\n"
        "threading.Thread(target=time.sleep, args=(9,), daemon=True).start()\n"
        "while time.process_time() < 0.3: pass"
    ) as pid:
        more = await sample(pid, None)
    assert (less.processes, less.threads, less.memory_kind) == (1, 1, "pss")
    assert (more.processes, more.threads) == (1, 2)
    assert less.open_files is not None
    assert more.open_files == less.open_files + 50
    assert more.cpu_seconds is not None
    assert more.cpu_seconds >= 0.25
    assert less.memory is not None
    assert more.memory is not None
    assert 60 * 2**20 < more.memory - less.memory < 70 * 2**20


CHILDREN = """
import subprocess, sys, threading
script = "import sys; print(1, flush=True); input()"
def start(**options):
    child = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, **options)
    child.stdout.readline()
    children.append(child)
children = []
start()
start(start_new_session=True)
thread = threading.Thread(target=start)
thread.start()
thread.join()
"""


async def test_what_comes_from_a_kernel_is_the_kernels() -> None:
    with program(CHILDREN) as pid:
        assert len(processes_of(pid)) == 4
        used = await sample(pid, None)
    assert used.processes == 4


def test_an_orphan_of_its_session_is_the_kernels() -> None:
    with program("") as one, program("") as other:
        assert processes_of(one, [one, other, 2**22 + 1]) == [one]
    with program(CHILDREN) as pid:
        child = next(each for each in processes_of(pid) if each != pid)
        assert sorted(processes_of(pid, [child])) == sorted(processes_of(pid))


async def test_a_process_that_is_gone_uses_nothing() -> None:
    with program("") as pid:
        pass
    used = await sample(pid, None)
    assert (used.processes, used.cpu_seconds, used.memory, used.open_files) == (0, 0.0, 0, 0)


async def test_a_kernel_with_too_many_processes_is_not_looked_at_in_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(usage, "MAX_PROCESSES", 3)
    monkeypatch.setattr(usage, "MAX_SHARED", 2)
    with program(CHILDREN) as pid:
        used = await sample(pid, None)
    assert (used.processes, used.memory_kind) == (3, "rss")


async def test_what_may_not_be_read_is_told_in_another_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As of a process that has changed its user."""
    monkeypatch.setattr(usage, "proportional_bytes", lambda _: None)
    monkeypatch.setattr(usage, "open_files", lambda _: None)
    with program("") as pid:
        used = await sample(pid, None)
    assert used.memory_kind == "rss"
    assert used.memory
    assert used.open_files is None


async def test_a_group_counts_for_itself(tmp_path: Path) -> None:
    FakeGroups(tmp_path)
    (tmp_path / "a" / "k").mkdir(parents=True)
    group = Group(tmp_path / "a" / "k", FakeGroups(tmp_path / "a" / "k"))
    (group.path / "cgroup.procs").write_text(f"{os.getpid()}\n")
    (group.path / "cpu.stat").write_text("usage_usec 2500000\n")
    (group.path / "memory.current").write_text("8192\n")
    (group.path / "pids.current").write_text("9\n")
    (group.owner / "memory.current").write_text("16384\n")
    used = await sample(os.getpid(), group)
    assert used.open_files
    assert (used.cpu_seconds, used.memory, used.memory_kind) == (2.5, 8192, "cgroup")
    assert (used.owner_memory, used.threads, used.processes) == (16384, 9, 1)


def test_open_files_are_counted_where_the_system_does_not_tell(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = usage.open_files(os.getpid())
    real = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path: os.stat_result((0,) * 10) if "/fd" in path else real(path)
    )
    counted = usage.open_files(os.getpid())
    assert told is not None
    assert counted is not None
    assert abs(counted - told) <= 1  # the directory is open while it is read
    assert usage.open_files(2**22 + 1) in (0, None)


PS = """\
    1     0     1   12:00.50    100
   70     1    70    0:01.50   1000
   71    70    70    0:00.25    500
   72    71    72    0:00.25    500
   80     1    80    1:00.00   9000
garbage
"""


def test_macos_tells_by_ps() -> None:
    assert _by_ps(70, PS) == Usage(
        cpu_seconds=2.0, memory=2000 * 1024, memory_kind="rss", processes=3
    )
    assert _by_ps(99, PS).processes == 0


@pytest.mark.parametrize(
    ("text", "seconds"), [("0:01.50", 1.5), ("10:00:00", 36000.0), ("2-01:00:00", 176400.0)]
)
def test_ps_writes_time_in_three_ways(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


async def test_a_keeper_tells_of_the_kernels_that_it_has(open_keeper: Open, home: Home) -> None:
    keeper = await open_keeper()
    assert await keeper.usage("none") is None
    kept = await launch(keeper, home, "sleep 1000 & sleep 1000")

    async def both_run() -> bool:
        used = await keeper.usage("k")
        return used is not None and used.processes == 3

    await eventually(both_run)
    used = await keeper.usage("k")
    assert used is not None
    assert (used.pid, used.enforced, used.memory_kind) == (kept.pid, {}, "pss")
    await keeper.signal("k", 9)
    await ended(keeper)
    assert await keeper.usage("k") is None


def test_the_load_of_the_machine_is_for_each_of_its_processors(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (6.0, 1.0, 1.0))
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    # What this process may use says nothing of what all others want.
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 5}, raising=False)
    assert load() == 1.5
