"""The servers that are measured, each a process of its own with a home of its own."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import psutil

from benchmarks.clients import Drain, receive_until
from benchmarks.rest import Rest
from benchmarks.websocket import WebSocket

__all__ = [
    "FORWARDER",
    "KERNELS",
    "ROOT",
    "Server",
    "ServerDied",
    "Usage",
    "forwarder",
    "kernelkeep",
    "peer",
]

ROOT: Final = Path(__file__).parents[1]
START_SECONDS: Final = 90

FORWARDER: Final = "bare forwarder"
"""The name of the server that does nothing but forward."""

FLOOD_KERNEL: Final = str(Path(__file__).parent / "flood_kernel.py")
KERNELS: Final = {
    "flood": [sys.executable, FLOOD_KERNEL, "-f", "{connection_file}"],
    "dropping": [sys.executable, FLOOD_KERNEL, "-f", "{connection_file}", "--hwm", "1000"],
    "ipykernel": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
}
"""The kernels that are measured with, by the name of their kernelspec."""


class ServerDied(RuntimeError):
    """The server's process has ended during a measure."""


class Usage:
    """What a process has used: CPU seconds, and now resident bytes, descriptors and threads."""

    def __init__(self, pid: int) -> None:
        process = psutil.Process(pid)
        self.cpu = _cpu_seconds(process)
        self.memory: int = process.memory_info().rss
        self.descriptors: int = process.num_fds()
        self.threads: int = process.num_threads()


def _cpu_seconds(process: psutil.Process) -> float:
    if sys.platform == "linux":
        # The clock of another process, which counts nanoseconds [clock_getcpuclockid(3)]; what
        # /proc says is in hundredths of a second, of which an idle server needs one or two.
        return time.clock_gettime(~process.pid << 3 | 2)
    times = process.cpu_times()
    return float(times.user + times.system)


class Server:
    """One server process. ``command`` may hold ``{port}``, ``{token}`` and ``{home}``.

    ``by_session``: its kernels are started and stopped as sessions only.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        with_token: bool = True,
        by_session: bool = False,
    ) -> None:
        self.name = name
        self.version = ""
        self.token = secrets.token_hex(8)
        self.headers = {"Authorization": f"token {self.token}"} if with_token else {}
        self._home = tempfile.TemporaryDirectory(prefix=f"bench-{name}-")
        self.port = _free_port()
        words = {"port": str(self.port), "token": self.token, "home": self._home.name}
        self._command = [word.format(**words) for word in command]
        self._cwd = cwd
        self._env = env or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._by_session = by_session
        self._sessions: dict[str, str] = {}  # by the kernel's id
        self.rest: Rest

    # Its life

    def start(self) -> Self:
        """Start it; returns when it answers. Raises `ServerDied` when it does not."""
        home = Path(self._home.name)
        _write_kernelspecs(home / "jupyter")
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "JUPYTER_PATH": str(home / "jupyter"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "PYTHONDONTWRITEBYTECODE": "",
            **self._env,
        }
        self._output = (home / "output").open("wb")
        self._process = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.rest = Rest(self.port, self.headers)
                self.rest.request("GET", "/api/kernels")
                return self
            except (OSError, RuntimeError, ValueError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise ServerDied(f"{self.name} did not start\n{self.output()}") from None
                time.sleep(0.1)

    def stop(self) -> None:
        """Stop it, and whatever it has left."""
        if self._process is None:
            return
        if hasattr(self, "rest"):  # it has answered once
            self.rest.close()
        children = _descendants(self._process.pid)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        for child in children:
            try:
                child.kill()
            except psutil.NoSuchProcess:
                pass
        self._output.close()
        self._home.cleanup()

    @property
    def is_alive(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    def output(self) -> str:
        """The end of what it wrote."""
        return (Path(self._home.name) / "output").read_text(errors="replace")[-2000:]

    @property
    def pid(self) -> int:
        """Its process's id."""
        assert self._process is not None
        return self._process.pid

    def usage(self) -> Usage:
        """What its process, without the kernels, has used. Raises `ServerDied`."""
        if not self.is_alive:
            raise ServerDied(f"{self.name} died")
        return Usage(self.pid)

    # Its kernels

    def start_kernel(self, name: str, *, anew: bool = False) -> str:
        """POST a kernel; its id. ``anew``: over a connection of its own, as somebody new.

        The kernels of ours then have an environment and a directory that no other has had.
        """
        if not anew:
            return self._start_kernel(name, self.rest, {})
        more = {}
        if self.name.startswith("kernelkeep"):
            folder = secrets.token_hex(8)
            (Path(self._home.name) / folder).mkdir()
            more = {"path": folder, "env": {"BENCHMARK": folder}}
        rest = Rest(self.port, self.headers)
        try:
            return self._start_kernel(name, rest, more)
        finally:
            rest.close()

    def _start_kernel(self, name: str, rest: Rest, more: Mapping[str, Any]) -> str:
        if not self._by_session:
            return str(rest.request("POST", "/api/kernels", {"name": name, **more})["id"])
        path = f"{secrets.token_hex(8)}.ipynb"
        body = {"path": path, "name": path, "type": "notebook", "kernel": {"name": name}}
        session: dict[str, Any] = rest.request("POST", "/api/sessions", body)
        kernel_id = str(session["kernel"]["id"])
        self._sessions[kernel_id] = session["id"]
        return kernel_id

    def delete_kernel(self, kernel_id: str) -> None:
        """DELETE a kernel."""
        session = self._sessions.pop(kernel_id, None)
        path = f"/api/kernels/{kernel_id}" if session is None else f"/api/sessions/{session}"
        self.rest.request("DELETE", path)

    def connect(self, kernel_id: str, *, v1: bool = True) -> WebSocket:
        """Open a channels WebSocket."""
        session = secrets.token_hex(8)
        path = _channels(kernel_id, session)
        return WebSocket(self.port, path, self._header_lines, v1=v1, session=session)

    def drain(self, kernel_id: str) -> Drain:
        """A client in a process of its own that reads all that a kernel says."""
        path = _channels(kernel_id, secrets.token_hex(8))
        return Drain(self.port, path, self._header_lines)

    @property
    def _header_lines(self) -> list[str]:
        return [f"{name}: {value}" for name, value in self.headers.items()]

    def ready(self, name: str, *, v1: bool = True) -> tuple[str, WebSocket]:
        """A kernel that has answered, and a connection to it on which nothing is pending."""
        kernel_id = self.start_kernel(name)
        connection = self.connect(kernel_id, v1=v1)
        msg_id = connection.execute("")
        receive_until(connection, msg_id, [b'"execute_reply"', b'"idle"'], 60)
        while connection.receive(0.3):
            pass
        connection.others.clear()
        return kernel_id, connection


def _channels(kernel_id: str, session: str) -> str:
    return f"/api/kernels/{kernel_id}/channels?session_id={session}"


def _write_kernelspecs(path: Path) -> None:
    for name, argv in KERNELS.items():
        directory = path / "kernels" / name
        directory.mkdir(parents=True)
        spec = {"argv": argv, "display_name": name, "language": "python"}
        (directory / "kernel.json").write_text(json.dumps(spec))


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kernelkeep(
    name: str = "kernelkeep", root: Path = ROOT, *, options: Sequence[str] = ()
) -> Server:
    """kernelkeep of the clone at ``root``, in this Python's environment."""
    command = [sys.executable, "-m", "app", "--port", "{port}", "--token", "{token}"]
    where = ["--root-dir", "{home}", "--state-dir", "{home}/state"]
    # The other servers' kernels end with them, too. Options that come later win.
    common = ["--no-limit-rate", "--on-shutdown", "stop"]
    return Server(name, [*command, *where, *common, *options], cwd=root)


def forwarder() -> Server:
    """The least that a server can do (`benchmarks.forwarder`)."""
    command = [sys.executable, "-m", "benchmarks.forwarder", "--port", "{port}", "--home", "{home}"]
    server = Server(FORWARDER, command)
    server.version = FORWARDER
    return server


def peer(name: str, python: Path) -> Server:
    """Another server, of an environment whose Python is ``python``; no limit on its output."""
    program = str(python.parent / _PROGRAMS[name])
    unlimited = "--ZMQChannelsWebsocketConnection.limit_rate=False"
    tornado = ["--ip=127.0.0.1", "--port={port}", unlimited]
    commands = {
        "jupyter_server": [
            *(program, "--no-browser", "--allow-root", *tornado),
            *("--IdentityProvider.token={token}", "--ServerApp.root_dir={home}"),
        ],
        "jupyter_kernel_gateway": [
            *(program, *tornado, "--KernelGatewayApp.auth_token={token}"),
            "--JupyterWebsocketPersonality.list_kernels=True",
        ],
        "jupyverse": [program, "--host", "127.0.0.1", "--port", "{port}", "--timeout", "60"],
    }
    is_jupyverse = name == "jupyverse"
    return Server(
        name,
        commands[name],
        cwd=Path("/"),
        with_token=not is_jupyverse,
        by_session=is_jupyverse,
    )


_PROGRAMS: Final = {
    "jupyter_server": "jupyter-server",
    "jupyter_kernel_gateway": "jupyter-kernelgateway",
    "jupyverse": "jupyverse",
}
