"""Supervision and launches that fail: no process is left that nobody lists.

These are the tests of `app.managers.kernels.services`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
from collections.abc import AsyncIterator, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast
from uuid import uuid4

import pytest

from app.managers.errors import (
    KernelkeepError,
    KernelNotStopped,
    KernelStartFailed,
    KernelUnreachable,
    ServerStopping,
    SessionNotFound,
)
from app.managers.executions.code import Code
from app.managers.handover import handover as handover_module
from app.managers.handover.elsewhere import Nowhere
from app.managers.handover.handover import RegisteredHandover
from app.managers.handover.registry import Registry
from app.managers.handover.store import KernelRecord, StoreAway
from app.managers.kernels.callers import CallersKernels
from app.managers.kernels.construction import multi_kernel_manager
from app.managers.kernels.kernel import Kernel
from app.managers.kernels.launches import Launches
from app.managers.kernels.life import Life
from app.managers.kernels.multikernel import MultiKernelManager
from app.managers.kernels.phases import Phase
from app.managers.kernels.services import KernelServices
from app.managers.kernels.stopping import SLACK_SECONDS, leave_all
from app.managers.kernels.ties import NO_TIES, registered
from app.managers.messages.traffic import Traffic
from app.managers.owners.ownership import Share
from app.managers.processes.process import KernelProcess, bounded
from app.managers.replicas.errors import RegistryUnavailable, ReplicaUnreachable
from app.managers.sessions.book import Everywhere, SessionBook
from app.managers.sessions.sessions import SessionManager
from app.managers.sessions.store import SessionStore
from app.managers.telemetry.counters import Counters
from app.managers.telemetry.events import Events
from app.protocol.messages import ClientMessage, Header
from app.settings import Settings
from tests.managers.kernels.test_external import GOOD
from tests.support.home import Home
from tests.support.identities import principal
from tests.support.kernelspecs import FAKE_SPECS, write_kernelspecs
from tests.support.processes import eventually, is_alive
from tests.support.registry import open_registry

OnShutdown = Literal["keep", "stop"]


@pytest.fixture
def state_dir(home: Home, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_kernelspecs(home.jupyter_path, FAKE_SPECS)
    monkeypatch.setenv("JUPYTER_PATH", str(home.jupyter_path))
    home.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    return home.state_dir


@asynccontextmanager
async def kernels(
    state_dir: Path, on_shutdown: OnShutdown = "keep", **options: Any
) -> AsyncIterator[MultiKernelManager]:
    """A manager in this process; what it keeps is ended at the end."""
    settings = Settings(
        _cli_parse_args=False,
        state_dir=state_dir,
        root_dir=state_dir.parent,
        default_kernel_name="fake",
        on_shutdown=on_shutdown,
        orphan_timeout=5,
        **options,
    )
    ties = registered(Registry(state_dir)) if on_shutdown == "keep" else NO_TIES
    manager = multi_kernel_manager(settings, Events(), Counters(), None, ties)
    await manager.adopt_kernels()
    try:
        yield manager
    finally:
        for kernel in manager:
            await kernel.stop(now=True)
        await manager.close()
        await ties.close()


async def is_up(kernel: Kernel) -> None:
    async with asyncio.timeout(30):
        assert await asyncio.shield(kernel.came_up)


def pid_of(kernel: Kernel) -> int:
    assert kernel.pid is not None
    return kernel.pid


def fails(*_: Any) -> Any:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("on_shutdown", ["keep", "stop"])
async def test_a_kernel_whose_supervision_fails_is_dead_and_has_no_process(
    state_dir: Path, on_shutdown: OnShutdown, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kernels(state_dir, on_shutdown) as manager:
        other = await manager.start_kernel()
        await is_up(other)
        kernel = await manager.start_kernel()
        pid = pid_of(kernel)
        monkeypatch.setattr(kernel.reports, "ready", fails)
        await eventually(lambda: kernel.state.word == "dead", 30)
        assert "failed to supervise" in kernel.state.reason
        assert not is_alive(pid)
        assert other.state.word == "idle"
        await kernel.stop()
        assert kernel.id not in manager


async def test_one_whose_process_could_not_be_ended_either_is_listed_until_it_is(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def kill(_: KernelProcess) -> str:
        return "the keeper does not answer"

    async with kernels(state_dir, shutdown_wait_time=0.2) as manager:
        kernel = await manager.start_kernel("fake-stubborn")
        pid = pid_of(kernel)
        monkeypatch.setattr(kernel.reports, "ready", fails)
        with monkeypatch.context() as patch:
            patch.setattr(KernelProcess, "kill", kill)
            await eventually(lambda: kernel.state.word == "unknown", 30)
            assert "the keeper does not answer" in kernel.state.reason
            with pytest.raises(KernelNotStopped):
                await kernel.stop()
            assert kernel.id in manager
            assert kernel.counts
            assert is_alive(pid)
        await kernel.stop()
        assert kernel.id not in manager
        assert not is_alive(pid)


@pytest.mark.parametrize("on_shutdown", ["keep", "stop"])
async def test_a_start_that_fails_behind_the_launch_leaves_no_process(
    state_dir: Path, on_shutdown: OnShutdown, monkeypatch: pytest.MonkeyPatch
) -> None:
    pids: list[int] = []

    def channels(*_: Any, **__: Any) -> Any:
        (kernel,) = manager
        pids.append(pid_of(kernel))
        raise OSError(24, "Too many open files")

    async with kernels(state_dir, on_shutdown) as manager:
        with monkeypatch.context() as patch:
            patch.setattr(Traffic, "connect", channels)
            with pytest.raises(KernelStartFailed, match="Too many open files"):
                await manager.start_kernel()
        assert len(manager) == 0
        assert not is_alive(pids[0])
        await is_up(await manager.start_kernel())


async def test_a_restart_that_fails_behind_the_launch_leaves_the_kernel_dead(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kernels(state_dir) as manager:
        kernel = await manager.start_kernel()
        await is_up(kernel)
        with monkeypatch.context() as patch:
            patch.setattr(Traffic, "connect", fails)
            with pytest.raises(KernelStartFailed, match="No space left"):
                await manager.restart_kernel(kernel.id)
        assert kernel.state.word == "dead"
        kept = await manager.keepers.kept()
        assert [one for one in kept.values() if one.exit_code is None] == []
        await manager.restart_kernel(kernel.id)
        await is_up(kernel)


async def test_a_warm_kernel_that_cannot_be_registered_is_nobodys_and_ends(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def register(_: Kernel) -> None:
        fails()

    async with kernels(state_dir, warm_kernels={"fake": 1}) as manager:
        await eventually(lambda: manager.warm.parked == {"fake": 1}, 30)
        (parked,) = manager.warm._pools["fake"].parked
        pid = pid_of(parked)
        with monkeypatch.context() as patch:
            patch.setattr(Kernel, "register", register)
            with pytest.raises((KernelkeepError, OSError)):
                await manager.start_kernel()
        assert len(manager) == 0
        assert not is_alive(pid)


async def test_a_warm_kernel_that_cannot_be_ended_is_ended_later(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def kill(_: KernelProcess) -> str:
        return "the keeper does not answer"

    monkeypatch.setattr("app.managers.kernels.warm.STOP_AGAIN_SECONDS", 0.1)
    async with kernels(state_dir, warm_kernels={"fake": 1}) as manager:
        await eventually(lambda: manager.warm.parked == {"fake": 1}, 30)
        (parked,) = manager.warm._pools["fake"].parked
        pid = pid_of(parked)
        manager.warm._pools["fake"].remove(parked)
        with monkeypatch.context() as patch:
            patch.setattr(KernelProcess, "kill", kill)
            manager.warm._stop(parked)
            await eventually(lambda: "could not be ended" in parked.state.reason)
            assert is_alive(pid)
        await eventually(lambda: not is_alive(pid))


async def test_nothing_of_a_kernel_that_is_gone_is_written_or_remembered(state_dir: Path) -> None:
    async with kernels(state_dir) as manager:
        kernel = await manager.start_kernel()
        await is_up(kernel)
        handover = manager._handover
        assert isinstance(handover, RegisteredHandover)
        await eventually(lambda: kernel.state.noted == kernel.state.changes)
        await kernel.stop()
        header = {"msg_id": "late", "msg_type": "execute_request", "session": "s"}
        parts = [json.dumps(part).encode() for part in (header, {}, {}, {"code": "1"})]
        late = ClientMessage("shell", Header("late", "execute_request", "s"), parts)
        kernel.traffic.submit(late, "s")
        await handover._registry.flush()
        with open_registry(state_dir) as connection:
            (rows,) = connection.execute("SELECT count(*) FROM execution").fetchone()
        assert rows == 0


async def test_a_state_directory_that_cannot_be_written_ends_no_kernel(state_dir: Path) -> None:
    async with kernels(state_dir, shutdown_wait_time=0.5) as manager:
        kernel = await manager.start_kernel()
        await is_up(kernel)
        os.rename(state_dir / "output", state_dir / "gone")
        (state_dir / "output").touch()  # neither can it be made again
        assert kernel.state.word == "idle"
        with pytest.raises(KernelkeepError):
            await manager.start_kernel()
        assert [*manager] == [kernel]
        await kernel.stop()
        assert len(manager) == 0
        os.remove(state_dir / "output")
        os.rename(state_dir / "gone", state_dir / "output")
        await is_up(await manager.start_kernel())


@pytest.mark.parametrize("on_shutdown", ["keep", "stop"])
async def test_a_relaunch_that_waits_for_its_directory_can_be_cut_short(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, on_shutdown: OnShutdown
) -> None:
    waits = asyncio.Event()

    async def directory(_: Launches) -> Path:
        waits.set()
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    async with kernels(state_dir, on_shutdown) as manager:
        kernel = await manager.start_kernel("fake")
        await is_up(kernel)
        with monkeypatch.context() as patch:
            patch.setattr(Launches, "_directory_now", directory)
            os.kill(pid_of(kernel), signal.SIGKILL)
            await asyncio.wait_for(waits.wait(), 30)
            await asyncio.wait_for(manager.shutdown_kernel(kernel.id), 60)
        assert [*manager] == []


@pytest.mark.parametrize("action", ["shutdown_kernel", "restart_kernel"])
async def test_a_stop_that_is_cut_short_behind_the_end_of_the_process_is_finished(
    state_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    action: str,
) -> None:
    """As when the server ends before all of many kernels have stopped."""
    async with kernels(state_dir) as manager:
        kernel = await manager.start_kernel()
        await is_up(kernel)
        pid = pid_of(kernel)
        cleaning = asyncio.Event()

        async def cleanup(*_: Any, **__: Any) -> None:
            monkeypatch.undo()
            cleaning.set()
            await asyncio.Event().wait()

        assert kernel._launches._manager is not None
        monkeypatch.setattr(kernel._launches._manager, "cleanup_resources", cleanup)
        acting = asyncio.create_task(getattr(manager, action)(kernel.id))
        await cleaning.wait()
        acting.cancel()
        await asyncio.wait({acting})
        assert not is_alive(pid)
        if action == "shutdown_kernel":
            await eventually(lambda: kernel.id not in manager)
        else:
            await eventually(lambda: kernel.pid not in (None, pid), 30)
            await is_up(kernel)
    assert "supervision failed" not in caplog.text


async def test_executions_end_with_a_kernel_that_is_stopped_in_the_middle_of_its_death(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kernels(state_dir) as manager:
        kernel = await manager.start_kernel("fake")
        await is_up(kernel)
        running, *waiting = [kernel.executions.run(Code("hang")) for _ in range(3)]
        await eventually(lambda: running.state == "running")
        disconnecting = asyncio.Event()
        disconnect = kernel.traffic.disconnect

        async def never() -> None:
            monkeypatch.setattr(kernel.traffic, "disconnect", disconnect)
            disconnecting.set()
            await asyncio.Event().wait()

        monkeypatch.setattr(kernel.traffic, "disconnect", never)
        os.kill(pid_of(kernel), signal.SIGKILL)
        await asyncio.wait_for(disconnecting.wait(), 10)
        await kernel.stop()  # which cancels what the death has begun
        assert [one.state for one in (running, *waiting)] == ["lost", "aborted", "aborted"]


def is_away(_: str) -> None:
    raise RegistryUnavailable


async def cannot_be_stopped(*_: Any, **__: Any) -> None:
    raise KernelNotStopped("It cannot be reached")


@pytest.mark.parametrize("access", ["read", "execute"])
async def test_only_a_kernel_that_a_start_has_made_is_ended_because_it_is_not_stored(
    state_dir: Path, access: Literal["read", "execute"], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kernels(state_dir) as manager, AsyncExitStack() as stack:
        hers = CallersKernels(manager, principal("anna", ("kernels:write", "sessions:write")))
        kernel = await hers.driving.start(kernel_id=str(uuid4()))
        kernel.ownership.grant(Share("name", "ben", access))
        await manager.shares_changed(kernel)
        monkeypatch.setattr(manager._handover, "check_saved", is_away)
        his = CallersKernels(manager, principal("ben", ("kernels:write",)))
        for one in (hers, his):
            assert await one.driving.start(kernel_id=kernel.id) is kernel
        assert is_alive(pid_of(kernel))
        # One that the start has made is not there, whoever asks for it and in whatever way.
        with pytest.raises(RegistryUnavailable):
            await his.driving.start()
        assert [*manager] == [kernel]
        book = SessionBook(manager, SessionStore(":memory:"))
        stack.push_async_callback(book.close)
        sessions = SessionManager(hers, book)
        with pytest.raises(RegistryUnavailable):
            await sessions.create("a.ipynb", "notebook")
        session = await sessions.create("b.ipynb", "notebook", kernel_id=kernel.id)
        with pytest.raises(RegistryUnavailable):
            await sessions.update(session.id, {}, kernel_name="fake")
        assert [*manager] == [kernel]


async def test_a_kernel_that_cannot_be_adopted_has_not_ended(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kernels(state_dir) as manager:
        kernel = await manager.start_kernel()
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "adopt", fails)
            with pytest.raises(OSError, match="No space"):
                await manager._own(kernel, cast(KernelRecord, None))
        assert kernel.id not in manager
        assert manager.departures.last == 0
        manager._kernels[kernel.id] = kernel  # so that it is ended


@pytest.mark.parametrize("moment", ["close", "remove_log"])
async def test_a_look_at_connection_files_that_is_cut_short_is_made_up_for_by_the_next(
    state_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """As when the client of an overview goes away in the middle of a look."""

    async def cut_short(action: str) -> None:
        with monkeypatch.context() as patch:
            held = Held(patch, Traffic, action)
            look = asyncio.create_task(manager.refresh())
            await held.called.wait()
            look.cancel()
        await asyncio.wait({look})
        held.may_go_on.set()

    file = tmp_path / "external" / "kernel.json"
    file.parent.mkdir()
    file.write_text(json.dumps(GOOD))
    options: Any = {"allow_external_kernels": True, "external_connection_dir": file.parent}
    async with kernels(state_dir, **options) as manager:
        await cut_short("connect")
        assert len(manager) == 0
        await manager.refresh()
        assert len(manager) == 1
        file.unlink()
        await cut_short(moment)
        await manager.refresh()
        assert len(manager) == 0
        assert manager.departures.last == 1
        await manager.refresh()
        assert manager.departures.last == 1


async def test_a_connection_file_of_no_use_is_told_of_to_nobody(
    state_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "external").mkdir()
    (tmp_path / "external" / "far.json").write_text(json.dumps({**GOOD, "ip": "192.0.2.7"}))
    options: Any = {
        "allow_external_kernels": True,
        "external_connection_dir": tmp_path / "external",
    }
    async with kernels(state_dir, **options) as manager:
        await manager.refresh()
        assert len(manager) == 0
        assert manager.departures.last == 0


class Held:
    """Calls of a coroutine function, which wait until they may go on."""

    def __init__(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.called, self.may_go_on = asyncio.Event(), asyncio.Event()
        function = getattr(owner, name)

        async def wait(*arguments: Any, **named: Any) -> Any:
            self.called.set()
            await self.may_go_on.wait()
            return await function(*arguments, **named)

        patch.setattr(owner, name, wait)


def registry_of(manager: MultiKernelManager) -> Registry:
    assert isinstance(manager._handover, RegisteredHandover)
    return manager._handover._registry


@pytest.mark.parametrize("moment", ["write", "adoption"])
async def test_a_share_that_ends_meanwhile_has_ended_for_the_next_server(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    async with kernels(state_dir) as manager:
        kernel = await manager.start_kernel()
        await is_up(kernel)
        registry = registry_of(manager)
        kernel.ownership.grant(Share("name", "ben", "read"))
        if moment == "write":
            held = Held(monkeypatch, registry, "save")
            doing = asyncio.create_task(manager.shares_changed(kernel))
        else:
            await manager.shares_changed(kernel)
            await manager.let_go(kernel.id)()
            held = Held(monkeypatch, Traffic, "resume")
            [record] = await registry.load()
            doing = asyncio.create_task(manager._adopt(record))
        await held.called.wait()
        kernel = manager.get(kernel.id)
        assert kernel.ownership.revoke(("name", "ben"))
        revoking = asyncio.create_task(manager.shares_changed(kernel))
        await asyncio.wait({revoking}, timeout=0.01)
        held.may_go_on.set()
        await asyncio.gather(doing, revoking)
        [record] = await registry.load()
        assert record.shares == []


async def test_a_stop_that_is_cancelled_brings_back_no_record(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kernels(state_dir) as manager:
        kernel = await manager.start_kernel()
        await is_up(kernel)
        with monkeypatch.context() as patch:
            held = Held(patch, Launches, "stop")
            stopping = asyncio.create_task(kernel.stop())
            await held.called.wait()
            kernel.ownership.grant(Share("name", "ben", "read"))
            await manager.shares_changed(kernel)  # which leaves the change to the stop
            stopping.cancel()
            await asyncio.wait({stopping})
        assert await registry_of(manager).load() == []


async def test_a_disk_that_hangs_keeps_no_kernel_from_being_left(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with kernels(state_dir) as manager:
        kernel = await manager.start_kernel()
        await is_up(kernel)
        held = Held(monkeypatch, registry_of(manager), "save")
        async with asyncio.timeout(30):
            left: list[str] = []
            assert await leave_all([kernel], 5.0, 2.0 - SLACK_SECONDS, left.append) == []
        assert left == []  # it is not handed over before the end
        assert held.called.is_set()
        assert "1 kernels are left without all that the next server should know" in caplog.text


async def test_a_registry_that_is_away_keeps_no_server_from_its_end(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail() -> None:
        raise StoreAway("of a test")

    async with kernels(state_dir) as manager:
        kernel = await manager.start_kernel()
        await is_up(kernel)
        held = Held(monkeypatch, manager._handover, "hand_over")
        monkeypatch.setattr(manager._handover, "hand_over_rest", fail)
        async with asyncio.timeout(30):
            await manager.stopped()
        assert held.called.is_set()
        assert is_alive(pid_of(kernel))
        assert "the other replicas take the kernels over when the lease has ended" in caplog.text


async def test_a_start_that_hangs_keeps_no_kernel_from_being_handed_over(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over: set[str] = set()

    async def note(kernel_ids: Collection[str]) -> Collection[str]:
        handed_over.update(kernel_ids)
        return kernel_ids

    async with kernels(state_dir) as manager:
        kernel = await manager.start_kernel()
        await is_up(kernel)
        monkeypatch.setattr(manager._handover, "hand_over", note)
        held = Held(monkeypatch, Kernel, "start")
        starting = asyncio.create_task(manager.start_kernel())
        await held.called.wait()
        manager._handover.adopting.add("taken")  # and not adopted by the time of the stop
        manager.begin_stop()
        await eventually(lambda: handed_over == {kernel.id, "taken"}, 30)
        assert not starting.done()
        held.may_go_on.set()
        with pytest.raises(ServerStopping):
            await starting
        await manager.stopped()
        # The client of the other was told that it has none.
        assert handed_over == {kernel.id, "taken"}


async def test_a_dead_kernel_that_is_left_before_it_is_adopted_keeps_its_record(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server ends while it reads the kernel's log: the next one knows how the kernel died."""
    async with kernels(state_dir, autorestart=False) as manager:
        kernel = await manager.start_kernel()
        await is_up(kernel)
        os.kill(pid_of(kernel), signal.SIGKILL)
        await eventually(lambda: kernel.state.word == "dead", 30)
        registry = registry_of(manager)
        [before] = await registry.load()
        assert before.dead
        await manager.let_go(kernel.id)()
        held = Held(monkeypatch, Traffic, "resume")
        adopting = asyncio.create_task(manager._adopt(before))
        await held.called.wait()
        half = manager.get(kernel.id)
        adopting.cancel()
        await asyncio.wait({adopting})
        assert await leave_all([half], 5.0, 30.0, lambda _: None) == []
        assert await registry.load() == [before]


async def test_a_task_that_does_not_end_holds_up_the_end_for_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    go = asyncio.Event()

    async def stubborn() -> None:
        while not go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go.wait()

    monkeypatch.setattr(handover_module, "CLOSE_SECONDS", 0.05)
    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(30):
        await RegisteredHandover.close(cast(Any, SimpleNamespace(_tasks={task})))
    assert "1 tasks of the handover do not end" in caplog.text
    go.set()
    await task


async def test_a_warm_kernel_of_which_its_client_does_not_hear_is_not_left(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kernels(state_dir, warm_kernels={"fake": 1}) as manager:
        await eventually(lambda: manager.warm.parked == {"fake": 1}, 30)
        (parked,) = manager.warm._pools["fake"].parked
        pid = pid_of(parked)
        held = Held(monkeypatch, Kernel, "register")
        starting = asyncio.create_task(manager.start_kernel())
        await held.called.wait()
        manager.begin_stop()
        await eventually(lambda: parked._course.phase is Phase.GONE)
        held.may_go_on.set()
        with pytest.raises(ServerStopping):
            await starting
        await manager.stopped()
        assert not is_alive(pid)


@pytest.mark.parametrize("way", ["culled", "forgotten"])
async def test_a_dead_kernel_that_is_being_restarted_is_not_removed(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr("app.managers.kernels.multikernel.MAX_DEAD", 1)
    async with kernels(state_dir, autorestart=False) as manager:
        kernel, other = [await manager.start_kernel() for _ in range(2)]
        for one in (kernel, other):
            await is_up(one)
            os.kill(pid_of(one), signal.SIGKILL)
        await eventually(lambda: {one.state.word for one in manager} == {"dead"}, 30)
        with monkeypatch.context() as patch:
            held = Held(patch, Launches, "check")
            restarting = asyncio.create_task(manager.restart_kernel(kernel.id))
            await held.called.wait()
            if way == "culled":
                removing = asyncio.create_task(manager.cull_kernel(kernel.id, 100.0))
            else:
                removing = asyncio.create_task(manager._forget_the_dead(kernel.ownership.owner))
            await asyncio.wait({removing}, timeout=0.1)
            held.may_go_on.set()
            await asyncio.gather(restarting, removing)
        assert kernel.id in manager
        await is_up(kernel)


async def test_a_session_whose_kernel_cannot_be_shut_down_can_be_deleted_again(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def is_away(*_: Any, **__: Any) -> None:
        raise ReplicaUnreachable

    async with kernels(state_dir) as manager, AsyncExitStack() as stack:
        book = SessionBook(manager, SessionStore(":memory:"))
        stack.push_async_callback(book.close)
        hers = CallersKernels(manager, principal("anna", ("kernels:write", "sessions:write")))
        sessions = SessionManager(hers, book)
        session = await sessions.create("a.ipynb", "notebook")
        with monkeypatch.context() as patch:
            patch.setattr(hers.driving, "shut_down", is_away)
            with pytest.raises(ReplicaUnreachable):
                await sessions.delete(session.id)
        assert await sessions.get(session.id) == session
        await sessions.delete(session.id)
        assert len(manager) == 0


async def test_a_stop_just_when_a_launch_is_left_to_the_life_ends_the_launch(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, ends = Life.begin, asyncio.Event()
    stops: list[asyncio.Task[None]] = []

    def stop_first(life: Life, *arguments: Any) -> None:
        # Its turn comes before the first step of the life.
        stops.append(asyncio.create_task(life._kernel.stop()))  # type: ignore[attr-defined]
        begin(life, *arguments)

    async def prepare(_: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ends.set()

    monkeypatch.setattr("app.managers.kernels.life.QUEUE_SECONDS", 0.0)
    monkeypatch.setattr(Life, "begin", stop_first)
    async with kernels(state_dir) as manager:
        monkeypatch.setattr(manager._services.engines, "has", lambda _: True)
        monkeypatch.setattr(manager._services.engines, "prepare", prepare)
        await manager.start_kernel()
        await stops[0]
        assert len(manager) == 0
        assert ends.is_set()


async def test_a_launch_that_fails_in_any_way_after_its_start_was_answered_leaves_a_dead_kernel(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_fail = asyncio.Event()

    async def prepare(_: str) -> None:
        await may_fail.wait()
        fails()

    monkeypatch.setattr("app.managers.kernels.life.QUEUE_SECONDS", 0.0)
    async with kernels(state_dir) as manager:
        engines = manager._services.engines
        monkeypatch.setattr(engines, "has", lambda _: True)
        monkeypatch.setattr(engines, "prepare", prepare)
        kernel = await manager.start_kernel()
        assert kernel.state.word == "starting"
        monkeypatch.setattr(engines, "has", lambda _: False)
        may_fail.set()
        await eventually(lambda: kernel.state.word == "dead", 30)


async def test_a_process_that_could_not_be_taken_over_is_not_watched_again_and_again(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def kill(_: KernelProcess) -> str:
        return "the keeper does not answer"

    async with kernels(state_dir) as manager:
        kernel = await manager.start_kernel()
        await is_up(kernel)
        name = f"process {pid_of(kernel)}"
        await manager.let_go(kernel.id)()
        [record] = await registry_of(manager).load()
        record.replaced, record.execution_state = True, "restarting"
        with monkeypatch.context() as patch:
            patch.setattr(KernelProcess, "kill", kill)
            await manager._adopt(record)
        assert manager.get(kernel.id).is_left
        await asyncio.sleep(0)  # in which a task that was cancelled ends
        assert [task for task in asyncio.all_tasks() if task.get_name() == name] == []


async def test_a_connection_file_that_has_changed_is_adopted_as_another_kernel(
    state_dir: Path, tmp_path: Path
) -> None:
    file = tmp_path / "external" / "kernel.json"
    file.parent.mkdir()
    file.write_text(json.dumps(GOOD))
    async with kernels(state_dir, external_connection_dir=file.parent) as manager:
        first = await manager.adopt_file(file.name, owned=False)
        assert await manager.adopt_file(file.name, owned=False) is first
        file.write_text(json.dumps({**GOOD, "key": "another"}))
        second = await manager.adopt_file(file.name, owned=False)
        assert second is not first
        assert [*manager] == [second]


async def test_one_that_is_not_stored_and_cannot_be_ended_is_told_of(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kernels(state_dir) as manager:
        monkeypatch.setattr(manager._handover, "check_saved", is_away)
        with monkeypatch.context() as patch:
            patch.setattr(Kernel, "stop", cannot_be_stopped)
            with pytest.raises(RegistryUnavailable) as raised:
                await manager.start_kernel()
        (kernel,) = manager
        said = f"Kernel {kernel.id} was started, and could not be ended"
        assert raised.value.message.endswith(said)


async def test_one_that_is_not_stored_and_whose_host_is_away_is_given_up(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up: list[str] = []

    async def stop(kernel: Kernel, **how: Any) -> None:
        if kernel.id not in given_up:
            kernel.state.on_reach("its host is away")
            await cannot_be_stopped()
        await original(kernel, **how)

    def give_up(kernel_id: str, _: str) -> bool:
        given_up.append(kernel_id)
        return True

    original = Kernel.stop
    async with kernels(state_dir) as manager:
        monkeypatch.setattr(manager._handover, "check_saved", is_away)
        monkeypatch.setattr(manager.keepers.remote, "give_up", give_up)
        monkeypatch.setattr(Kernel, "stop", stop)
        with pytest.raises(RegistryUnavailable) as raised:
            await manager.start_kernel()
        assert [*manager] == []
        assert len(given_up) == 1
        assert raised.value.message == RegistryUnavailable().message


async def test_a_session_that_has_its_new_kernel_is_told_of_the_one_that_goes_on(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with kernels(state_dir) as manager, AsyncExitStack() as stack:
        book = SessionBook(manager, SessionStore(":memory:"))
        stack.push_async_callback(book.close)
        scopes = ("kernels:write", "sessions:write")
        sessions = SessionManager(CallersKernels(manager, principal("anna", scopes)), book)
        session = await sessions.create("a.ipynb", "notebook")
        with monkeypatch.context() as patch:
            patch.setattr(Kernel, "stop", cannot_be_stopped)
            with pytest.raises(KernelNotStopped, match="has its new kernel"):
                await sessions.update(session.id, {}, kernel_name="fake")
        changed = await sessions.get(session.id)
        assert changed.kernel_id != session.kernel_id
        assert len([*manager]) == 2


async def test_a_kernel_whose_adoption_has_to_wait_keeps_its_sessions_and_its_id(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.managers.handover.handover.AT_A_TIME", 1)
    monkeypatch.setattr("app.managers.handover.handover.ADOPTION_SECONDS", 0.0)
    async with kernels(state_dir) as manager, AsyncExitStack() as stack:
        there = Everywhere(manager, manager.adopting, Nowhere())
        book = SessionBook(there, SessionStore(":memory:"))
        stack.push_async_callback(book.close)
        sessions = SessionManager(CallersKernels(manager, principal("root", ("*",))), book)
        made = [await sessions.create(f"{number}.ipynb", "notebook") for number in range(2)]
        for session in made:
            await is_up(manager.get(session.kernel_id))
            await manager.let_go(session.kernel_id)()
        held = Held(monkeypatch, Kernel, "adopt")
        await manager._handover.adopt(manager._adopt)
        await held.called.wait()
        assert len(manager) == 1
        (late,) = (one for one in made if one.kernel_id not in manager)
        assert len(json.loads(await sessions.models())) == 1
        with pytest.raises(KernelUnreachable):
            await sessions.get(late.id)
        with pytest.raises(KernelUnreachable):
            await sessions.create(late.path, "notebook")
        others = SessionManager(CallersKernels(manager, principal("ben", ("sessions:read",))), book)
        with pytest.raises(SessionNotFound):
            await others.get(late.id)
        assert (len(manager), len(book.all())) == (1, 2)
        with pytest.raises(KernelUnreachable):
            await manager.start_kernel(kernel_id=late.kernel_id)
        held.may_go_on.set()
        await eventually(lambda: late.kernel_id not in manager.adopting)
        assert len(json.loads(await sessions.models())) == 2
        assert await sessions.create(late.path, "notebook") == await sessions.get(late.id) == late


async def test_a_part_that_cannot_be_closed_keeps_no_other_open() -> None:
    closed: list[str] = []

    class Part:
        def __init__(self, name: str, fails: bool = False) -> None:
            self.name, self.servers, self.fails = name, self, fails

        def close(self) -> Any:
            closed.append(self.name)
            if self.fails:
                raise OSError(self.name)
            done = asyncio.get_running_loop().create_future()
            done.set_result(None)
            return done

    names = [field.name for field in fields(KernelServices) if field.init]
    parts: dict[str, Any] = {name: Part(name, name == "keepers") for name in names}
    with pytest.raises(OSError, match="keepers"):
        await KernelServices(**parts).close()
    begin = ["usage", "forking", "keepers", "engines"]
    assert closed == [*begin, "joining", "transports", "isolation", "files"]


async def test_a_call_that_fails_just_as_its_caller_is_cancelled_is_no_error_in_the_log() -> None:
    told: list[dict[str, Any]] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: told.append(context))
    begun = loop.create_future()

    async def fail() -> None:
        await begun
        raise OSError("of a test")

    def cancel_soon(task: asyncio.Task[Any]) -> None:
        loop.call_soon(task.cancel)

    caller = asyncio.create_task(bounded(fail()))
    await asyncio.sleep(0)
    begun.set_result(None)
    # The call fails in this turn, and its caller is cancelled in the next, before it is told.
    loop.call_soon(cancel_soon, caller)
    await asyncio.wait({caller})
    assert caller.cancelled()
    del caller
    gc.collect()
    assert told == []
