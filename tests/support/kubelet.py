"""The node of a stand-in cluster: the containers of its pods are processes of this machine."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.support.processes import eventually

if TYPE_CHECKING:
    from tests.support.cluster import Cluster

NODE = "node-1"

Json = dict[str, Any]


class Kubelet:
    """Runs the first container of each pod. What the manifest mounts is in the pod's directory."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.is_away = False
        """Whether the API server does not hear the node: containers run, and nothing is told."""
        self.processes: dict[str, asyncio.subprocess.Process] = {}
        """By the pods' names."""
        self.reason: str | None = None
        """The reason that is told of the next container that is killed, in place of Error."""
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def begin(self, pod: Json) -> None:
        """Run a pod."""
        name = pod["metadata"]["name"]
        self._tasks[name] = asyncio.create_task(self._run(pod), name=f"pod {name}")

    def end(self, pod: Json, grace: int | None) -> None:
        """End a pod: SIGTERM, and SIGKILL when its time is over."""
        name = pod["metadata"]["name"]
        process = self.processes.get(name)
        if self.is_away:
            return
        if process is None:
            self._tasks[name].cancel()
            self._tasks[f"{name} "] = asyncio.create_task(self._go(pod))
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            seconds = 30 if grace is None else grace
            asyncio.get_running_loop().call_later(max(seconds, 1), self._kill, process)

    @staticmethod
    def _kill(process: asyncio.subprocess.Process) -> None:
        with contextlib.suppress(ProcessLookupError):
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)

    def kill(self, name: str) -> None:
        """The kernel of the node kills all processes of a container."""
        os.killpg(self.processes[name].pid, signal.SIGKILL)
        self._kill_children(name)

    def _kill_children(self, name: str) -> None:
        """As the end of a container's first process does: that of its namespace."""
        mark = str(self._directory(name)).encode()
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                if mark in (entry / "environ").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)

    def _directory(self, name: str) -> Path:
        return self._cluster.directory / f"p{name[-19:]}"  # keepers have sockets in it

    async def _run(self, pod: Json) -> None:
        name, spec = pod["metadata"]["name"], pod["spec"]
        container = spec["containers"][0]
        spec["nodeName"] = NODE
        await self._tell(pod, {"phase": "Pending", **_waiting(container, "ContainerCreating")})
        directory = self._directory(name)
        directory.mkdir()
        await self._mount(pod, directory)

        def here(text: str) -> str:
            """A path of the container's, where it is for the process."""
            for mount in container["volumeMounts"]:
                path = mount["mountPath"]
                if text == path or text.startswith(f"{path}/"):
                    return f"{directory}/{mount['name']}{text[len(path) :]}"
            return text

        env = {each["name"]: here(each["value"]) for each in container["env"]}
        base = {"PATH": os.environ["PATH"], "TMPDIR": here("/tmp"), "PYTHONUNBUFFERED": "1"}
        command = [here(word) for word in container["command"]]
        log = directory / "log"
        try:
            with log.open("wb") as file:
                process = await asyncio.create_subprocess_exec(
                    *command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    env={**base, **env},
                    cwd=directory,
                    start_new_session=True,
                )
        except FileNotFoundError:
            text = "failed to create containerd task: failed to create shim task: OCI runtime "
            text += "create failed: runc create failed: unable to start container process: exec: "
            text += f'"{command[0]}": executable file not found in $PATH: unknown'
            await self._over(pod, {"exitCode": 128, "reason": "StartError", "message": text})
            return
        self.processes[name] = process
        running = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
        state = {"name": container["name"], "ready": True, "state": running}
        ready = [{"type": "Ready", "status": "True"}]
        told = {"phase": "Running", "containerStatuses": [state], "conditions": ready}
        await self._tell(pod, told)
        code = await process.wait()
        del self.processes[name]
        self._kill_children(name)
        message = log.read_text("utf-8", "replace")[-2048:]
        ended: Json = {"exitCode": code if code >= 0 else 128 - code}
        ended["reason"] = self.reason or ("Completed" if code == 0 else "Error")
        self.reason = None
        await self._over(pod, {**ended, "message": message if code else ""})

    async def _over(self, pod: Json, ended: Json) -> None:
        state = {"name": pod["spec"]["containers"][0]["name"], "ready": False}
        phase = "Failed" if ended["exitCode"] else "Succeeded"
        told = {"phase": phase, "containerStatuses": [{**state, "state": {"terminated": ended}}]}
        await self._tell(pod, told)
        if "deletionTimestamp" in pod["metadata"]:
            await self._go(pod)

    async def _go(self, pod: Json) -> None:
        name = pod["metadata"]["name"]
        if self._cluster.pods.get(name) is pod and not self.is_away:
            await self._cluster.remove(name)

    async def _tell(self, pod: Json, status: Json) -> None:
        name = pod["metadata"]["name"]
        if self._cluster.pods.get(name) is pod and not self.is_away:
            await self._cluster.set_status(name, status)

    async def _mount(self, pod: Json, directory: Path) -> None:
        for volume in pod["spec"]["volumes"]:
            path = directory / volume["name"]
            path.mkdir()
            if "secret" in volume:
                secret = await self._secret(volume["secret"]["secretName"])
                for key, value in secret["data"].items():
                    file = path / key
                    file.touch(volume["secret"]["defaultMode"])
                    file.write_bytes(base64.b64decode(value))

    async def _secret(self, name: str) -> Json:
        await eventually(lambda: name in self._cluster.secrets, 30)
        return self._cluster.secrets[name]

    async def close(self) -> None:
        """End all processes."""
        for name, process in [*self.processes.items()]:
            self.kill(name)
            await process.wait()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)


def _waiting(container: Json, reason: str, message: str = "") -> Json:
    waiting = {"reason": reason, **({"message": message} if message else {})}
    state = {"name": container["name"], "image": container["image"], "ready": False}
    return {"containerStatuses": [{**state, "state": {"waiting": waiting}}]}
