"""Real control groups: a keeper that enforces limits with them. Not collected: `test_real_groups`
runs this file on a machine of its own (`tests.support.uml`), where nothing else has the groups.
"""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.keeper.group_files import SERVICE, GroupFiles, find_base, group_of
from app.keeper.groups import ControlGroups
from app.keeper.limits import ProcessLimits
from app.managers.processes.keeper.client import Keeper
from app.managers.processes.keeper.kept import Kept, ProcessUsage
from tests.keeper.conftest import Open, ended
from tests.support.home import Home
from tests.support.processes import eventually

ROOT = Path("/sys/fs/cgroup")
MIB = 2**20
WAIT = 60


@pytest.fixture(autouse=True)
async def place(request: pytest.FixtureRequest) -> AsyncIterator[Path]:
    """Where the keeper is started: in a group below the machine's, unless a test says so."""
    base = ROOT
    if getattr(request, "param", "below") == "below":
        base = ROOT / "unit"
        for name in ("memory", "cpu", "pids"):
            (ROOT / "cgroup.subtree_control").write_text(f"+{name}")
        base.mkdir()
        (base / "cgroup.procs").write_text(str(os.getpid()))
    yield base
    await eventually(lambda: [*base.glob("kernelkeep-*-*")] == [], WAIT)  # nothing is left
    if base != ROOT:
        (ROOT / "cgroup.procs").write_text(str(os.getpid()))
        used = [group for group in (base / SERVICE, base) if group.exists()]
        await eventually(lambda: not any(map(processes, used)), WAIT)
        for empty in used:
            empty.rmdir()


def processes(place: Path) -> str:
    return (place / "cgroup.procs").read_text()


@pytest.fixture
async def keeper(open_keeper: Open) -> Keeper:
    return await open_keeper()


async def start(
    keeper: Keeper, home: Home, code: str, limits: ProcessLimits, kernel_id: str = "k"
) -> Kept:
    return await keeper.launch(
        kernel_id,
        [sys.executable, "-S", "-c", code],
        env=home.environment(),
        cwd=str(home.root_dir),
        output=home.state_dir / "output" / f"kernel-{kernel_id}.log",
        limits=limits,
    )


def group(kept: Kept) -> Path:
    found = group_of(kept.pid)
    assert found is not None
    return found


async def usage(keeper: Keeper, kernel_id: str = "k") -> ProcessUsage:
    used = await keeper.usage(kernel_id)
    assert used is not None
    return used


BY_GROUP = {"memory": "cgroup", "cpu": "cgroup", "processes": "cgroup", "open_files": "setrlimit"}


@pytest.mark.parametrize("place", ["below", "root"], indirect=True)
async def test_a_process_is_in_its_group_before_it_runs(keeper: Keeper, home: Home) -> None:
    limits = ProcessLimits("anna", memory=512 * MIB, cpu=0.5, processes=30, open_files=64)
    code = "print(open('/proc/self/cgroup').read(), flush=True); import time; time.sleep(1000)"
    kept = await start(keeper, home, code, limits)
    assert kept.enforced == BY_GROUP
    told = ""

    async def has_told() -> bool:
        nonlocal told
        told = await keeper.tail("k")
        return bool(told)

    await eventually(has_told, WAIT)
    where = group(kept)
    assert told.strip().endswith("/anna/k-k.1")
    assert (where.parent / "memory.max").read_text() == f"{512 * MIB}\n"
    assert (where.parent / "cpu.max").read_text() == "50000 100000\n"
    assert (where.parent / "pids.max").read_text() == "30\n"
    assert (where / "memory.oom.group").read_text() == "1\n"
    assert resource.prlimit(kept.pid, resource.RLIMIT_NOFILE) == (64, 64)

    used = await usage(keeper)
    assert (used.processes, used.threads, used.memory_kind) == (1, 1, "cgroup")
    assert used.memory
    assert used.owner_memory
    assert used.owner_memory >= used.memory
    assert used.open_files == 3
    await keeper.end("k")
    await eventually(lambda: not where.parent.exists(), WAIT)


async def test_who_takes_too_much_memory_is_killed_and_nobody_else(
    keeper: Keeper, home: Home
) -> None:
    limits = ProcessLimits("anna", memory=96 * MIB)
    code = """
import os, time
if os.fork():
    hold = []
    while True:
        hold.append(bytearray(2**20))
time.sleep(1000)
"""
    neighbour = await start(keeper, home, "import time; time.sleep(1000)", limits, "n")
    kept = await start(keeper, home, code, limits)
    where = group(kept)
    assert await ended(keeper) == -signal.SIGKILL
    assert keeper.was_out_of_memory("k")
    await eventually(lambda: not where.exists(), WAIT)  # the other process is gone as well
    assert not keeper.exited("n").done()
    assert not keeper.was_out_of_memory("n")
    assert group_of(neighbour.pid) is not None


async def test_a_process_that_is_killed_otherwise_has_had_memory(
    keeper: Keeper, home: Home
) -> None:
    kept = await start(
        keeper, home, "import time; time.sleep(1000)", ProcessLimits(memory=96 * MIB)
    )
    os.kill(kept.pid, signal.SIGKILL)
    assert await ended(keeper) == -signal.SIGKILL
    assert not keeper.was_out_of_memory("k")


async def test_a_limit_that_is_too_low_to_start_says_so(keeper: Keeper, home: Home) -> None:
    await start(keeper, home, "print('up')", ProcessLimits(memory=MIB))
    assert await ended(keeper) == -signal.SIGKILL
    assert keeper.was_out_of_memory("k")


async def test_a_fork_bomb_ends_at_its_limit(keeper: Keeper, home: Home) -> None:
    code = """
import os, time
made = 0
try:
    while made < 200:
        if os.fork() == 0:
            time.sleep(1000)
        made += 1
except BlockingIOError as error:
    print(made, error.errno, flush=True)
time.sleep(1000)
"""
    kept = await start(keeper, home, code, ProcessLimits("anna", processes=20))
    told = ""

    async def has_told() -> bool:
        nonlocal told
        told = await keeper.tail("k")
        return bool(told)

    await eventually(has_told, WAIT)
    assert told.strip() == "19 11"
    assert (await usage(keeper)).processes == 20
    where = group(kept)
    await keeper.end("k")
    await eventually(lambda: not where.exists(), WAIT)


async def test_a_busy_loop_has_its_share(keeper: Keeper, home: Home) -> None:
    await start(keeper, home, "while True: pass", ProcessLimits("anna", cpu=0.2))
    before = await usage(keeper)
    await asyncio.sleep(2)
    after = await usage(keeper)
    assert before.cpu_seconds is not None
    assert after.cpu_seconds is not None
    assert (after.cpu_seconds - before.cpu_seconds) / (after.at - before.at) < 0.3


async def test_what_leaves_the_process_group_ends_with_the_kernel(
    keeper: Keeper, home: Home
) -> None:
    code = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
time.sleep(0.5)
"""
    kept = await start(keeper, home, code, ProcessLimits("anna", processes=20))
    where = group(kept)
    await ended(keeper)
    await eventually(lambda: not where.exists(), WAIT)


async def test_a_keeper_that_follows_finds_the_group(
    keeper: Keeper, home: Home, open_keeper: Open
) -> None:
    limits = ProcessLimits("anna", memory=96 * MIB, processes=20)
    code = """
import signal, time
hold = []
signal.signal(signal.SIGUSR1, lambda *_: [hold.append(bytearray(2**20)) for _ in range(500)])
while True: time.sleep(1)
"""
    kept = await start(keeper, home, code, limits)
    where = group(kept)
    assert keeper.pid is not None
    os.kill(keeper.pid, signal.SIGKILL)
    await eventually(lambda: keeper.is_connected is False, WAIT)
    await keeper.connect()
    again = await keeper.adopt("k", kept.pid, kept.start_time, Path(kept.output), limits)
    assert again is not None
    assert again.enforced == {"memory": "cgroup", "processes": "cgroup"}
    assert group(kept) == where
    assert (await usage(keeper)).memory_kind == "cgroup"
    await keeper.signal("k", signal.SIGUSR1)
    await ended(keeper)
    assert keeper.was_out_of_memory("k")
    await eventually(lambda: not where.parent.exists(), WAIT)


async def test_a_kernel_that_gets_another_owner_moves(keeper: Keeper, home: Home) -> None:
    code = "import os, time; os.fork(); time.sleep(1000)"
    kept = await start(keeper, home, code, ProcessLimits("nobody", memory=96 * MIB))
    before = group(kept)
    await eventually(lambda: len((before / "cgroup.procs").read_text().split()) == 2, WAIT)
    limits = ProcessLimits("anna", memory=200 * MIB, open_files=50)
    moved = await keeper.adopt("k", kept.pid, kept.start_time, Path(kept.output), limits)
    assert moved is not None
    assert moved.unlimited == ""
    after = group(kept)
    assert after.parent.name == "anna"
    assert len((after / "cgroup.procs").read_text().split()) == 2
    assert not before.exists()


async def test_a_kernel_without_a_group_gets_one(keeper: Keeper, home: Home) -> None:
    """As one that was forked, or kept warm."""
    code = "import os, time; os.fork(); time.sleep(1000)"
    kept = await start(keeper, home, code, ProcessLimits())
    assert kept.enforced == {}

    async def has_forked() -> bool:
        return (await usage(keeper)).processes == 2

    await eventually(has_forked, WAIT)
    limits = ProcessLimits("anna", memory=200 * MIB)
    moved = await keeper.adopt("k", kept.pid, kept.start_time, Path(kept.output), limits)
    assert moved is not None
    assert moved.enforced == {"memory": "cgroup"}
    assert len((group(kept) / "cgroup.procs").read_text().split()) == 2


async def test_no_room_for_a_group_fails_the_start(keeper: Keeper, home: Home, place: Path) -> None:
    limits = ProcessLimits("anna", processes=20)
    kept = await start(keeper, home, "import time; time.sleep(1000)", limits)
    (group(kept).parent / "cgroup.max.descendants").write_text("1")
    with pytest.raises(OSError, match="temporarily unavailable") as raised:
        await start(keeper, home, "print('never')", limits, "k2")
    assert raised.value.errno == 11  # so says the system where there is no room for a group
    assert (await keeper.kept()).keys() == {"k"}


async def test_a_read_only_tree_is_not_used(place: Path, home: Home, open_keeper: Open) -> None:
    keeper = await open_keeper()
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(None, b"/sys/fs/cgroup", None, 32 | 1, None) == 0  # MS_REMOUNT | MS_RDONLY
    try:
        limits = ProcessLimits("anna", memory=900 * MIB, cpu=1.0, open_files=60)
        kept = await start(keeper, home, "import time; time.sleep(1000)", limits)
        assert kept.enforced == {"memory": "setrlimit", "cpu": "none", "open_files": "setrlimit"}
        assert (await usage(keeper)).memory_kind == "pss"
    finally:
        assert libc.mount(None, b"/sys/fs/cgroup", None, 32, None) == 0


async def test_a_group_that_another_has_removed(place: Path) -> None:
    groups = ControlGroups("t-t", lambda files: find_base(files, lasting=False))
    made = groups.new("k", ProcessLimits("anna", memory=96 * MIB))
    descriptor = made.open()
    GroupFiles().remove(made.path)
    with pytest.raises(OSError, match="No such device"):
        os.write(descriptor, b"0")
    os.close(descriptor)
    groups.end(made)
    again = groups.new("k", ProcessLimits("anna", memory=96 * MIB))
    groups.end(again)
    groups.close()
