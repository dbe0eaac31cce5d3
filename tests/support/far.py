"""A kernel provisioner whose kernels live elsewhere: they are nobody's children here.

It is a module of its own for servers, which find it by the entry point that `install_far` writes.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase

from tests.support.kernelspecs import Spec
from tests.support.processes import is_alive

LOAD_SECONDS = 8.0

# Starts the kernel and ends: whoever adopts orphans has it then.
ELSEWHERE = """
import json, subprocess, sys
order = json.loads(sys.argv[1])
nothing = subprocess.DEVNULL
kernel = subprocess.Popen(**order, stdin=nothing, stdout=nothing, stderr=nothing,
                          start_new_session=True)
print(kernel.pid)
"""

SPEC = Spec(metadata={"kernel_provisioner": {"provisioner_name": "far"}})


def install_far(directory: Path) -> dict[str, str]:
    """Have servers with this environment find the provisioner ``far``."""
    information = directory / "far-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: far\nVersion: 1.0\n")
    point = "[jupyter_client.kernel_provisioners]\nfar = tests.support.far:FarProvisioner\n"
    (information / "entry_points.txt").write_text(point)
    return {"PYTHONPATH": str(directory), "FAR_DIRECTORY": str(directory)}


class FarProvisioner(KernelProvisionerBase):
    """To find a kernel again takes it, in blocking calls, until all that are wanted are looked for.

    How many that are is in the file ``wanted`` of the directory. Those of the file ``lost`` are
    not found again, and those of ``late`` not at the first time. What else fails is in the file
    ``failing``: calls by their names, and whether they ``raise`` or ``hang`` (`fail`).
    """

    number: int | None = None

    @property
    def has_process(self) -> bool:
        return self.number is not None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        manager = self.parent
        assert manager is not None
        manager.write_connection_file()
        self.connection_info = manager.get_connection_info()
        arguments = kwargs.pop("extra_arguments", [])
        command = manager.format_kernel_cmd(extra_arguments=arguments)
        return await super().pre_launch(cmd=command, **kwargs)

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> Any:
        order = json.dumps({"args": cmd, "cwd": kwargs["cwd"], "env": kwargs["env"]})
        started = await asyncio.create_subprocess_exec(
            sys.executable, "-c", ELSEWHERE, order, stdout=subprocess.PIPE
        )
        said, _ = await started.communicate()
        self.number = int(said)
        return self.connection_info

    async def post_launch(self, **kwargs: Any) -> None:
        await _misbehave("post_launch")

    async def poll(self) -> int | None:
        await _misbehave("poll")
        if self.number is None:
            return 0
        return None if is_alive(self.number) else 1

    async def wait(self) -> int | None:
        return await self.poll()

    async def send_signal(self, signum: int) -> None:
        await _misbehave("send_signal")
        self._signal(signum)

    def _signal(self, signum: int) -> None:
        if self.number is not None:
            os.killpg(self.number, signum)

    async def kill(self, restart: bool = False) -> None:
        await _misbehave("kill")
        self._signal(signal.SIGKILL)

    async def terminate(self, restart: bool = False) -> None:
        await _misbehave("terminate")
        self._signal(signal.SIGTERM)

    async def cleanup(self, restart: bool = False) -> None:
        await _misbehave("cleanup")
        if not restart:
            self.number = None

    async def get_provisioner_info(self) -> dict[str, Any]:
        await _misbehave("get_provisioner_info")
        return {**await super().get_provisioner_info(), "number": self.number}

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        await super().load_provisioner_info(provisioner_info)
        await _misbehave("load")
        self._look_for_it()
        self.number = provisioner_info["number"]

    def _look_for_it(self) -> None:
        directory = Path(os.environ["FAR_DIRECTORY"])
        loading = directory / "loading"
        loading.mkdir(exist_ok=True)
        (loading / self.kernel_id).touch()
        wanted = int((directory / "wanted").read_text())
        deadline = time.monotonic() + LOAD_SECONDS
        while len(os.listdir(loading)) < wanted:
            if time.monotonic() > deadline:
                raise TimeoutError(f"{wanted} were not looked for at once")
            time.sleep(0.01)
        if self.kernel_id in (directory / "lost").read_text():
            raise LookupError("nobody there knows it")
        late = directory / "late"
        if self.kernel_id in late.read_text():
            late.write_text("")
            raise ConnectionError("nobody answers there")


async def _misbehave(call: str) -> None:
    """Do what the directory says of this call."""
    failing = Path(os.environ["FAR_DIRECTORY"]) / "failing"
    how = json.loads(failing.read_text()).get(call) if failing.exists() else None
    if how == "raise":
        raise ConnectionError("nobody answers there")
    while how == "hang" and call in failing.read_text():  # noqa: ASYNC110 (of another process)
        await asyncio.sleep(0.05)


def fail(directory: Path, how: str = "raise", *calls: str) -> None:
    """Have just these calls fail from now on."""
    new = directory / "failing.new"
    new.write_text(json.dumps(dict.fromkeys(calls, how)))
    new.replace(directory / "failing")


def expect(directory: Path, wanted: int, lost: str = "", late: str = "") -> None:
    """Tell the provisioners of the next server what they will find."""
    shutil.rmtree(directory / "loading", ignore_errors=True)
    (directory / "wanted").write_text(str(wanted))
    (directory / "lost").write_text(lost)
    (directory / "late").write_text(late)
