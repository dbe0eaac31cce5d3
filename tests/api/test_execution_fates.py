"""No execution outlives its kernel, whatever happens to it: random kills, restarts and cancels."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed

from tests.conftest import servers
from tests.support.executions import NDJSON, Executions, Json
from tests.support.kernelspecs import FAKE_SPECS, Spec
from tests.support.processes import eventually
from tests.support.rest import RestError
from tests.support.running import RunningKernel, kernels_of
from tests.support.server import ServerProcess

ENDS = {"ok", "error", "aborted", "cancelled", "lost"}
CULLED = {"cull_idle_timeout": 4}  # seconds, in which a kernel has started

CODE = ("print a", "sleep 60", "sleep 0.05", "error E why", "no-idle", "die 3", "flood 500 100")
ACTIONS = (*CODE, "websocket", "cancel", "kill", "restart", "interrupt", "pause")
ENDINGS = ("delete", "cull", "kill until dead")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server(
            *("--cull-idle-timeout", "3600", "--cull-interval", "0.3"),
            *("--cull-busy", "--cull-connected", "--restart-limit", "3"),
            specs={**FAKE_SPECS, "culled": Spec(metadata=CULLED)},
        )


@contextmanager
def forgiven(*statuses: int) -> Iterator[None]:
    """Errors with these statuses are no failures."""
    try:
        yield
    except RestError as error:
        if error.status not in statuses:
            raise


class Fate:
    """One kernel, what was asked of it, and a follower of each execution."""

    def __init__(self, kernel: RunningKernel) -> None:
        self.kernel = kernel
        self.executions = Executions(kernel.rest, kernel.id)
        self.followers: dict[str, asyncio.Task[list[Json]]] = {}

    async def do(self, action: str) -> None:
        # It has been left dead, or culled, meanwhile.
        with forgiven(404, 409), suppress(ConnectionClosed):
            await self._do(action)

    async def _do(self, action: str) -> None:
        kernel = self.kernel
        if action == "websocket":
            await kernel.channels.send_execute("sleep 0.1\nprint b")
        elif action == "cancel":
            for execution_id in tuple(self.followers)[-2:]:
                await self.executions.cancel(execution_id, kill_after=0.2)
        elif action == "kill":
            await self.kill()
        elif action == "restart":
            await kernel.rest.restart(kernel.id)
        elif action == "interrupt":
            await kernel.rest.interrupt(kernel.id)
        elif action == "pause":
            await asyncio.sleep(0.1)
        else:
            await self.ask(action)
        await self.check()

    async def ask(self, code: str) -> None:
        response = await self.executions.post(code)
        if response.status_code in (200, 202):
            execution_id = response.json()["id"]
            self.followers[execution_id] = asyncio.create_task(self._follow(execution_id))
        else:
            assert response.status_code in (404, 409), response.text

    async def _follow(self, execution_id: str) -> list[Json]:
        """Its events; none if the kernel was culled before they were asked for."""
        events: list[Json] = []
        try:
            async for event in self.executions.events(execution_id, NDJSON):
                events.append(event)
        except AssertionError:  # of another status than 200, which comes before any event
            if events or not await self.is_gone():
                raise
        return events

    async def kill(self) -> None:
        for pid in _kernel_processes(self.kernel.id):
            with suppress(ProcessLookupError):  # it has ended since it was found
                os.kill(pid, signal.SIGKILL)

    async def check(self) -> None:
        """A kernel that is dead has nothing under way."""
        state = (await self.kernel.model())["execution_state"]
        listed = await self.executions.listed(limit=1000)
        if state == "dead":
            assert {execution["state"] for execution in listed} <= ENDS

    async def end(self, ending: str) -> None:
        kernel = self.kernel
        if ending == "kill until dead":
            for _ in range(40):
                if (await kernel.model())["execution_state"] == "dead":
                    break
                await self.kill()
                await asyncio.sleep(0.1)
            await self.check()
        if ending == "cull":
            await eventually(self.is_gone, timeout=60)
        else:
            await kernel.rest.delete(kernel.id)

    async def is_gone(self) -> bool:
        return self.kernel.id not in [one["id"] for one in await self.kernel.rest.kernels()]


def _kernel_processes(kernel_id: str) -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/cmdline", "rb") as file:
                    command = file.read()
            except OSError:
                continue
            if f"kernel-{kernel_id}.json".encode() in command:
                found.append(int(name))
    return found


@given(
    actions=st.lists(st.sampled_from(ACTIONS), min_size=3, max_size=14),
    ending=st.sampled_from(ENDINGS),
)
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_every_execution_ends_with_its_kernel_at_the_latest(
    server: ServerProcess, actions: list[str], ending: str
) -> None:
    asyncio.run(_live(server, actions, ending))


async def _live(server: ServerProcess, actions: list[str], ending: str) -> None:
    async with kernels_of(server) as start:
        fate = Fate(await start("culled" if ending == "cull" else "fake"))
        for action in actions:
            await fate.do(action)
        with forgiven(404):  # it was culled before that
            await fate.end(ending)
        # The kernel is gone, and each follower has been told its one end.
        async with asyncio.timeout(60):
            for follower in fate.followers.values():
                if not (events := await follower):
                    continue
                assert [event["type"] for event in events].count("ended") == 1
                assert events[-1]["type"] == "ended"
                assert events[-1]["state"] in ENDS
