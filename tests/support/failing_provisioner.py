"""A kernel provisioner that fails on demand; its kernels live on when the server ends.

It is a module of its own for servers, which find it by the entry point that `FailingProvisioners`
writes. The test's orders are files in a directory that both know.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from jupyter_client.provisioning.local_provisioner import LocalProvisioner

from tests.support.faults import LATE_SECONDS, Call, Way
from tests.support.home import Home
from tests.support.kernelspecs import Spec
from tests.support.processes import is_alive

__all__ = ["CENSUS", "FAILING", "CensusProvisioner", "FailingProvisioner", "FailingProvisioners"]

FAILING = Spec(metadata={"kernel_provisioner": {"provisioner_name": "failing"}})
CENSUS = Spec(metadata={"kernel_provisioner": {"provisioner_name": "census"}})
"""A kernel of this one never starts; the server only counts what it has, see `census`."""

DIRECTORY = "FAULTS_DIRECTORY"
LOOK_SECONDS = 0.05

CALLS = (
    *("pre_launch", "launch_kernel", "post_launch", "poll", "wait", "send_signal", "terminate"),
    *("kill", "cleanup", "shutdown_requested", "get_provisioner_info", "load_provisioner_info"),
)

# What the server has of kernels and of connections to them. What it made before it was ready is not
# found: it is no garbage that could be collected.
COUNTED = {
    *("Kernel", "KernelProcess", "KernelManager", "Channels", "Traffic", "Executions", "Reader"),
    *("Socket", "MessageLog", "FailingProvisioner", "KeeperProvisioner", "_Watched"),
}

POINTS = """\
[jupyter_client.kernel_provisioners]
failing = tests.support.failing_provisioner:FailingProvisioner
census = tests.support.failing_provisioner:CensusProvisioner
"""


class FailingProvisioners:
    """The test's end. ``env`` is for servers; a key is a kernel's id or its kernelspec's name."""

    shared = False
    spec = "failing"

    def __init__(self, home: Home) -> None:
        self._directory = home.path / "faults"
        information = self._directory / "failing-1.0.dist-info"
        information.mkdir(parents=True)
        name = "Metadata-Version: 2.1\nName: failing\nVersion: 1.0\n"
        (information / "METADATA").write_text(name)
        (information / "entry_points.txt").write_text(POINTS)
        self.env = {"PYTHONPATH": str(self._directory), DIRECTORY: str(self._directory)}

    @property
    def common(self) -> set[str]:
        """The calls that are for no kernel in particular: none."""
        return set()

    def order(self, key: str, call: Call, way: Way) -> None:
        self._calls(key).unlink(missing_ok=True)
        self._write(key, {"name": call.name, "nth": call.nth, "way": way})

    def met(self, key: str) -> bool:
        return _met(self._directory, key).exists()

    async def heal(self, key: str) -> None:
        order = _order(self._directory, key)
        order.unlink(missing_ok=True)
        _met(self._directory, key).unlink(missing_ok=True)

    def record(self, key: str) -> None:
        self._calls(key).unlink(missing_ok=True)
        self._write(key, {"name": "", "nth": 0, "way": Way.LATE})

    def recorded(self, key: str) -> list[str]:
        try:
            return self._calls(key).read_text().split()
        except FileNotFoundError:
            return []

    def census(self) -> Counter[str]:
        """What the last kernel of the kernelspec ``census`` found in the server."""
        return Counter(json.loads((self._directory / "census").read_text()))

    def _calls(self, key: str) -> Path:
        return self._directory / f"{key}.calls"

    def _write(self, key: str, order: dict[str, Any]) -> None:
        new = self._directory / f"{key}.new"
        new.write_text(json.dumps(order))
        new.rename(_order(self._directory, key))


def _order(directory: Path, key: str) -> Path:
    return directory / f"{key}.order"


def _met(directory: Path, key: str) -> Path:
    """There from the moment when the call has come; the provisioner is dead if it says so."""
    return directory / f"{key}.met"


class FaithfulProvisioner(LocalProvisioner):
    """Kernels of its own making, as far as the server can see: they are polled, by no pidfd.

    No method calls another, so that each call is one of the server's.
    """

    number: int | None = None

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        info = await super().launch_kernel(cmd, **kwargs)
        self.number, self.pid = self.pid, None
        return info

    async def poll(self) -> int | None:
        return self.process.poll() if self.process is not None else 0

    async def wait(self) -> int | None:
        process = self.process
        while process is not None and process.poll() is None:  # noqa: ASYNC110
            await asyncio.sleep(LOOK_SECONDS)
        self.process = None
        return process.poll() if process is not None else 0

    async def send_signal(self, signum: int) -> None:
        self._signal(signum)

    async def kill(self, restart: bool = False) -> None:
        self._signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None and self.number is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.number, number)

    async def get_provisioner_info(self) -> dict[str, Any]:
        return {**await super().get_provisioner_info(), "number": self.number}

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        await super().load_provisioner_info(provisioner_info)
        self.number = int(provisioner_info["number"])
        self.process = _Found(self.number)  # type: ignore[assignment]


class _Found:
    """A process that a server before this one has launched."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def poll(self) -> int | None:
        return None if is_alive(self._pid) else 1


class FailingProvisioner(FaithfulProvisioner):
    """Fails as it is told to. While it is dead, every call raises."""

    async def call(self, name: str, do: Callable[[], Awaitable[Any]]) -> Any:
        """One call of the server's."""
        directory = Path(os.environ[DIRECTORY])
        key, way = self._meet(directory, name)
        met = _met(directory, key)
        if way is None and met.exists() and met.read_text():
            raise ConnectionError("the other side of the provisioner has ended")
        if way is Way.RAISE:
            raise RuntimeError("the provisioner was told to fail")
        if way is Way.HANG:
            await _withdrawn(directory, key)
        result = await do()
        if way is Way.LATE:
            await asyncio.sleep(LATE_SECONDS)
        elif way is Way.LOSE:
            await _withdrawn(directory, key)
        elif way is Way.DIE:
            raise ConnectionError("the other side of the provisioner has ended")
        return result

    def _meet(self, directory: Path, name: str) -> tuple[str, Way | None]:
        """Note the call; by whose order it is to fail, and how."""
        for key in (self.kernel_id, getattr(self.parent, "kernel_name", "")):
            try:
                order = json.loads(_order(directory, key).read_text())
            except FileNotFoundError:
                continue
            with open(directory / f"{key}.calls", "a+") as calls:
                calls.write(f"{name}\n")
                calls.seek(0)
                nth = calls.read().split().count(name)
            if (name, nth) != (order["name"], order["nth"]) or _met(directory, key).exists():
                return key, None
            way = Way(order["way"])
            _met(directory, key).write_text("dead" if way.deadly else "")
            return key, way
        return self.kernel_id, None


async def _withdrawn(directory: Path, key: str) -> None:
    while _order(directory, key).exists():  # noqa: ASYNC110
        await asyncio.sleep(LOOK_SECONDS)


def _failing(name: str) -> Callable[..., Awaitable[Any]]:
    faithful = getattr(FaithfulProvisioner, name)

    async def method(self: FailingProvisioner, *arguments: Any, **named: Any) -> Any:
        return await self.call(name, lambda: faithful(self, *arguments, **named))

    return method


for _name in CALLS:
    setattr(FailingProvisioner, _name, _failing(_name))


class CensusProvisioner(LocalProvisioner):
    """Counts the server's tasks and objects, and launches nothing."""

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        found: Counter[str] = Counter()
        for task in asyncio.all_tasks():
            work = task.get_coro()
            code = getattr(work, "cr_code", None)
            if code is not None and f"{os.sep}app{os.sep}" in code.co_filename:
                found[f"task {getattr(work, '__qualname__', '')}"] += 1
        gc.collect()
        for thing in gc.get_objects():
            if type(thing).__name__ in COUNTED:
                found[type(thing).__name__] += 1
        (Path(os.environ[DIRECTORY]) / "census").write_text(json.dumps(found))
        raise RuntimeError("this was a census")
