"""A real podman in a network namespace, with Docker's API, and an image that needs no download."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.kernels.driver import free_ports
from tests.support.kernelspecs import Spec
from tests.support.networks import Network
from tests.support.processes import eventually_sync
from tests.support.server import REPOSITORY

WAIT = 60  # seconds

IMAGE = "kernels"
"""An image without anything in it: what containers run is mounted from this machine."""

DIRECTORIES = "bin dev etc home lib lib64 proc root run sys tmp usr var".split()  # noqa: SIM905

# A small machine has no control groups that could be used, and lower limits than podman sets.
CONTAINERS = """
[containers]
cgroups = "disabled"
netns = "host"
seccomp_profile = "unconfined"
log_driver = "k8s-file"
default_ulimits = ["nofile=16384:16384", "nproc=16384:16384"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "crun"
[network]
network_backend = "netavark"
"""
STORAGE = """
[storage]
driver = "overlay"
graphroot = "{directory}/graph"
runroot = "{directory}/run"
"""
REGISTRIES = """
unqualified-search-registries = []
[[registry]]
location = "{registry}"
insecure = true
"""

# crun refuses the hybrid hierarchy of control groups where it is mounted.
SERVICE = (
    "! mountpoint -q /sys/fs/cgroup/unified || umount /sys/fs/cgroup/unified; "
    'exec podman system service --time=0 "unix://$1"'
)


def layer(*more: str) -> bytes:
    """The image's one layer: directories to mount something at, and these."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in (*DIRECTORIES, *more):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(entry)
    return data.getvalue()


class Podman:
    """The engine. Its containers have the network of a host of their own, ``network``."""

    bounds_memory = True
    """Whether a container keeps the limit of memory that it is given."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kk-podman-")).resolve()
        self.socket = self.directory / "docker.sock"
        self.work = self.directory / "work"
        """A directory that containers see, and where their kernels work."""
        self.work.mkdir()
        self.network = Network("kkp")
        self.registry = f"{self.network.here}:{free_ports()['shell_port']}"
        """Where a registry may be that its images come from."""
        self._process: subprocess.Popen[bytes] | None = None

    def make(self) -> None:
        """Make the network, start, and have the image."""
        self.network.make()
        self.start()
        answer = self.ask("POST", f"/images/create?fromSrc=-&repo={IMAGE}", layer())
        assert answer.status_code == 200, answer.text

    def start(self) -> None:
        """Returns when the API answers."""
        self._process = self._begin()

        def answers() -> bool:
            with socket.socket(socket.AF_UNIX) as probe:
                if probe.connect_ex(str(self.socket)) != 0:
                    return False
            return self.ask("GET", "/_ping").status_code == 200

        eventually_sync(answers, WAIT)

    def _begin(self) -> subprocess.Popen[bytes]:
        for name, text in (
            ("containers", CONTAINERS),
            ("storage", STORAGE.format(directory=self.directory)),
            ("registries", REGISTRIES.format(registry=self.registry)),
        ):
            (self.directory / f"{name}.conf").write_text(text)
        env = {
            "CONTAINERS_CONF": str(self.directory / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.directory / "storage.conf"),
            "CONTAINERS_REGISTRIES_CONF": str(self.directory / "registries.conf"),
        }
        return self._spawn(SERVICE, [str(self.socket)], env)

    def _spawn(
        self, script: str, words: Sequence[str], env: Mapping[str, str]
    ) -> subprocess.Popen[bytes]:
        """Run a script in the network, and with mounts of its own."""
        enter = ["nsenter", f"--net={self.network.path}", "unshare", "-m", "--propagation"]
        with open(self.directory / "log", "ab") as log:
            return subprocess.Popen(
                [*enter, "private", "sh", "-c", script, "sh", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **env},
                start_new_session=True,
            )

    def ask(
        self, method: str, path: str, content: bytes | None = None, kind: str = "application/x-tar"
    ) -> httpx.Response:
        """A request to the API."""
        transport = httpx.HTTPTransport(uds=str(self.socket))
        with httpx.Client(transport=transport, timeout=WAIT) as client:
            headers = {"Content-Type": kind} if content else {}
            return client.request(
                method, f"http://engine/v1.41{path}", content=content, headers=headers
            )

    def containers(self) -> list[dict[str, Any]]:
        """All that there are."""
        found: list[dict[str, Any]] = self.ask("GET", "/containers/json?all=true").json()
        return found

    def container_of(self, kernel_id: str) -> dict[str, Any]:
        """That of a kernel, as the engine inspects it."""
        (found,) = [
            each
            for each in self.containers()
            if each["Labels"].get("org.kernelkeep.kernel") == kernel_id
        ]
        inspected: dict[str, Any] = self.ask("GET", f"/containers/{found['Id']}/json").json()
        return inspected

    def kill(self, kernel_id: str) -> None:
        """``docker kill``, by somebody else."""
        container = self.container_of(kernel_id)
        answer = self.ask("POST", f"/containers/{container['Id']}/kill")
        assert answer.status_code == 204, answer.text

    def stop(self) -> None:
        """The engine ends, and its containers go on, as those of podman do."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(WAIT)
            self._process = None
            self.socket.unlink(missing_ok=True)

    def remove(self) -> None:
        """End everything, and remove all files."""
        if self._process is None:
            self.start()
        for each in self.containers():
            self.ask("DELETE", f"/containers/{each['Id']}?force=true")
        self.stop()
        self.network.remove()
        shutil.rmtree(self.directory, ignore_errors=True)

    def spec(self, options: Mapping[str, Any] | None = None, **more: Any) -> Spec:
        """A kernelspec whose kernels run in its containers; ``options`` are the provisioner's."""
        seen = ["/usr", "/bin", "/lib", "/lib64", sys.prefix, sys.base_prefix, str(REPOSITORY)]
        mounts: list[dict[str, Any]] = [
            {"source": path, "target": path} for path in dict.fromkeys(seen) if path != "/usr/local"
        ]
        work = str(self.work)
        config = {
            "image": f"docker.io/library/{IMAGE}:latest",
            "docker": f"unix://{self.socket}",
            "python": sys.executable,
            "directory": work,
            "network": "host",
            "pull": "never",
            "mounts": [*mounts, {"source": work, "target": work, "read_only": False}],
            **(options or {}),
        }
        stanza = {"provisioner_name": "kernelkeep-docker", "config": config}
        return Spec(metadata=json.loads(json.dumps({"kernel_provisioner": stanza})), **more)
