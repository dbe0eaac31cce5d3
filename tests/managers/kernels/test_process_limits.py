"""Limits of a kernel's owner hold for each of its processes, however that comes to be."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from pathlib import Path

import msgspec
import pytest

from app.keeper.limits import ProcessLimits, owner_key
from app.managers.errors import KernelStartFailed
from app.managers.kernels.kernel import Kernel
from app.managers.kernels.multikernel import MultiKernelManager
from app.managers.owners.ownership import Ownership
from app.managers.processes.keeper.client import Keeper
from app.managers.processes.keeper.kept import Kept
from app.managers.processes.keeper.provisioner import KeeperProvisioner
from app.managers.state import Lifecycle
from tests.managers.kernels.test_supervision import is_up, kernels, pid_of, state_dir
from tests.support.processes import eventually

__all__ = ["state_dir"]

FILES = 333
ANNA = Ownership("anna")


def limits_of(ownership: Ownership) -> ProcessLimits:
    if ownership.owner != "anna":
        return ProcessLimits()
    return ProcessLimits(owner_key("anna"), open_files=FILES)


def limit(manager: MultiKernelManager) -> None:
    manager._services.process_limits = limits_of


def files(kernel: Kernel) -> tuple[int, int]:
    return resource.prlimit(pid_of(kernel), resource.RLIMIT_NOFILE)


async def test_each_process_of_an_owner_has_its_limits(state_dir: Path) -> None:
    async with kernels(state_dir, "stop") as manager:
        limit(manager)
        kernel = await manager.start_kernel("fake", ownership=ANNA)
        assert files(kernel) == (FILES, FILES)
        await is_up(kernel)
        used = await manager.usage.usage(kernel)
        assert used.limits["open_files"].enforced == "setrlimit"

        before = pid_of(kernel)
        os.kill(before, signal.SIGKILL)  # it is restarted
        await eventually(lambda: kernel.pid not in (None, before))
        assert files(kernel) == (FILES, FILES)
        other = await manager.start_kernel("fake", ownership=Ownership("ben"))
        assert files(other) == resource.getrlimit(resource.RLIMIT_NOFILE)


async def test_a_forked_kernel_has_them_before_it_begins(state_dir: Path) -> None:
    async with kernels(state_dir, "stop", fork_kernels=["python3"]) as manager:
        limit(manager)

        async def is_forked() -> bool:
            kernel = await manager.start_kernel("python3", ownership=ANNA)
            assert files(kernel) == (FILES, FILES)
            command = await asyncio.to_thread(Path(f"/proc/{kernel.pid}/cmdline").read_bytes)
            await manager.shutdown_kernel(kernel.id)
            return b"fork_server" in command

        await eventually(is_forked, 60)


async def test_a_warm_kernel_gets_them_when_it_gets_an_owner(state_dir: Path) -> None:
    async with kernels(state_dir, "stop", warm_kernels={"fake": 1}) as manager:
        limit(manager)
        await eventually(lambda: manager.warm.parked["fake"] == 1, 30)
        warm = manager.warm._pools["fake"].oldest
        kernel = await manager.start_kernel("fake", ownership=ANNA)
        assert kernel is warm
        assert files(kernel) == (FILES, FILES)


async def test_a_warm_kernel_whose_limits_cannot_be_set_is_given_to_nobody(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt = Keeper.adopt

    async def unlimited(keeper: Keeper, *arguments: object) -> Kept | None:
        kept = await adopt(keeper, *arguments)  # type: ignore[arg-type]
        if kept is None:
            return None
        return Kept(kept.kernel_id, kept.pid, kept.start_time, None, kept.output, {}, "no room")

    async with kernels(state_dir, "stop", warm_kernels={"fake": 1}) as manager:
        limit(manager)
        await eventually(lambda: manager.warm.parked["fake"] == 1, 30)
        monkeypatch.setattr(Keeper, "adopt", unlimited)
        with pytest.raises(KernelStartFailed, match="limits cannot be set: no room"):
            await manager.start_kernel("fake", ownership=ANNA)
        assert len(manager) == 0


async def test_a_kernel_that_is_adopted_has_those_of_now(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kernels(state_dir) as manager:
        limit(manager)
        kernel = await manager.start_kernel("fake", ownership=ANNA)
        await is_up(kernel)
        assert files(kernel) == (FILES, FILES)
        await manager.close()
    fewer = ProcessLimits(open_files=200)
    monkeypatch.setattr("app.managers.kernels.construction.process_limits", lambda *_: fewer)
    async with kernels(state_dir) as manager:
        again = manager.get(kernel.id)
        assert files(again) == (200, 200)
        assert again.limits.open_files == 200


async def test_a_keeper_that_enforces_nothing_is_seen(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One of before there were limits does not take the field, nor answer with another."""
    convert = msgspec.convert

    def old(answer: object, kind: type) -> object:
        if kind is Kept and isinstance(answer, dict):
            answer = {
                name: answer[name] for name in ("kernel_id", "pid", "start_time", "exit_code")
            } | {"output": answer["output"]}
        return convert(answer, kind)

    async with kernels(state_dir, "stop") as manager:
        limit(manager)
        monkeypatch.setattr(msgspec, "convert", old)
        with caplog.at_level(logging.WARNING):
            kernel = await manager.start_kernel("fake", ownership=ANNA)
        used = await manager.usage.usage(kernel)
        assert kernel.limits.open_files == FILES
    assert (
        f"kernel {kernel.id} has no limit of open_files: its keeper is of the time" in caplog.text
    )
    assert used.limits["open_files"].value == FILES


@pytest.mark.parametrize(
    ("by", "why"),
    [
        ("cgroup", "(oom): its owner's kernels may take 2048 MiB together"),
        ("setrlimit", "(oom): its control group had none left"),
    ],
)
async def test_a_kernel_that_had_no_memory_left_says_so(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, by: str, why: str
) -> None:
    """What the keeper tells is real in `tests.keeper.in_uml`."""
    monkeypatch.setattr(KeeperProvisioner, "out_of_memory", True)
    async with kernels(state_dir, "stop", autorestart=False) as manager:
        manager._services.process_limits = lambda _: ProcessLimits(memory=2**31)
        kernel = await manager.start_kernel("fake", ownership=ANNA)
        await is_up(kernel)
        provisioner = kernel._launches.provisioner
        assert isinstance(provisioner, KeeperProvisioner)
        provisioner.enforced = {"memory": by}
        os.kill(pid_of(kernel), signal.SIGKILL)
        await eventually(lambda: kernel.state.lifecycle is Lifecycle.DEAD)
        expected = f"The kernel's process was killed by signal 9 (SIGKILL); out of memory {why}"
        assert kernel.state.reason == expected
        assert manager._services.counters.deaths["fake", "oom"] == 1
