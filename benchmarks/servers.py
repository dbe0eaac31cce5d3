"""The servers that are measured, each a process of its own with a home of its own."""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, Self

import psutil

from benchmarks.clients import Drain, receive_until
from benchmarks.columns import FORWARDER, OURS, is_ours
from benchmarks.figures import NotMeasured
from benchmarks.rest import Rest
from benchmarks.usage import Costs, Usage
from benchmarks.websocket import WebSocket

__all__ = [
    "KERNELS",
    "ROOT",
    "Server",
    "ServerDied",
    "forwarder",
    "kernelkeep",
    "peer",
]

ROOT: Final = Path(__file__).parents[1]
START_SECONDS: Final = 90

FLOOD_KERNEL: Final = str(Path(__file__).parent / "flood_kernel.py")
KERNELS: Final = {
    "flood": [sys.executable, FLOOD_KERNEL, "-f", "{connection_file}"],
    "dropping": [sys.executable, FLOOD_KERNEL, "-f", "{connection_file}", "--hwm", "1000"],
    "ipykernel": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
}
"""The kernels that are measured with, by the name of their kernelspec."""


class ServerDied(RuntimeError):
    """The server's process has ended during a measure."""


class Server:
    """One server process. ``command`` may hold ``{port}``, ``{token}`` and ``{home}``.

    ``by_session``: its kernels are started and stopped as sessions only. ``kernels``: the commands
    of its kernels, by the name of their kernelspec.
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
        kernels: Mapping[str, Sequence[str]] = KERNELS,
    ) -> None:
        self.name = name
        self._template = tuple(command)
        self._with_token = with_token
        self._kernels = kernels
        self.version = ""
        self.token = secrets.token_hex(8)
        self.headers = {"Authorization": f"token {self.token}"} if with_token else {}
        self._home = tempfile.TemporaryDirectory(prefix="bench-")
        self.port = _free_port()
        words = {"port": str(self.port), "token": self.token, "home": self._home.name}
        self._command = [word.format(**words) for word in command]
        self._cwd = cwd
        self._env = env or {}
        self._process: subprocess.Popen[bytes] | None = None
        self._keepers: list[psutil.Process] = []
        self._by_session = by_session
        self._sessions: dict[str, str] = {}  # by the kernel's id
        self.rest: Rest

    # Its life

    def start(self) -> Self:
        """Start it; returns when it answers. Raises `ServerDied` when it does not."""
        write_kernelspecs(Path(self._home.name) / "jupyter", self._kernels)
        return self._launch()

    def _launch(self) -> Self:
        home = Path(self._home.name)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "JUPYTER_PATH": str(home / "jupyter"),
            "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "PYTHONDONTWRITEBYTECODE": "",
            **self._env,
        }
        self._output = (home / "output").open("ab")
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
                time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL, to the server alone; what it has started is left as it is."""
        assert self._process is not None
        self.rest.close()
        self._process.kill()
        self._process.wait(10)
        self._output.close()

    def revive(self) -> Self:
        """Start it once more after `kill`, with what it has left. Raises `ServerDied`."""
        return self._launch()

    @contextmanager
    def fresh(self, kernels: Mapping[str, Sequence[str]] | None = None) -> Iterator[Self]:
        """The same server once more, with nothing behind it and these kernels too; it is ended.

        Raises `ServerDied` when it does not start, or whatever happens when it has died.
        """
        another = type(self)(
            self.name,
            self._template,
            cwd=self._cwd,
            env=self._env,
            with_token=self._with_token,
            by_session=self._by_session,
            kernels={**self._kernels, **(kernels or {})},
        )
        try:
            yield another.start()
        except (ServerDied, NotMeasured):
            raise
        except Exception as error:
            if another.is_alive:
                raise
            raise ServerDied(f"the server died ({type(error).__name__}: {error})") from error
        finally:
            another.stop()

    def stop(self) -> None:
        """Stop it, and whatever it has left."""
        if self._process is None:
            self._home.cleanup()
            return
        if hasattr(self, "rest"):  # it has answered once
            self.rest.close()
        left = self._left()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        for process in (*left, *self._left()):
            with suppress(psutil.NoSuchProcess):
                process.kill()
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
        return Usage.of(self.pid)

    def costs(self) -> Costs:
        """What it and its keeper have used. Raises `ServerDied`."""
        keepers = [Usage.of(keeper.pid) for keeper in self.keepers()]
        return Costs(self.usage(), Usage.sum(keepers) if keepers else None)

    def keepers(self) -> list[psutil.Process]:
        """The processes that keep kernelkeep's kernels; other servers have none.

        They are looked for where a server has left them, too. There need be none without kernels.
        """
        if not is_ours(self.name):
            return []
        if not self._keepers or not all(keeper.is_running() for keeper in self._keepers):
            self._keepers = [
                process
                for process in psutil.process_iter(["cmdline"])
                if "app.keeper" in (words := process.info["cmdline"] or [])
                and any(word.startswith(self._home.name) for word in words)
            ]
        return self._keepers

    def kernels(self) -> list[psutil.Process]:
        """The processes of its kernels, and those that they are forked from."""
        keepers = self.keepers()
        roots = [self.pid, *(keeper.pid for keeper in keepers)]
        found = {process for pid in roots for process in _descendants(pid)}
        return [process for process in found if process not in keepers]

    def _left(self) -> list[psutil.Process]:
        """Whatever it has started: it need not be its child any more."""
        found = {*self.kernels(), *self.keepers()}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != self.pid and process.environ().get("HOME") == self._home.name:
                    found.add(process)
        return list(found)

    def said(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        """The last line of its output with a pattern."""
        text = (Path(self._home.name) / "output").read_text(errors="replace")
        return max(pattern.finditer(text), key=re.Match.start, default=None)

    # Its kernels

    def start_kernel(self, name: str, *, anew: bool = False, rest: Rest | None = None) -> str:
        """POST a kernel; its id. ``anew``: over a connection of its own, as somebody new.

        The kernels of ours then have an environment and a directory that no other has had.
        """
        if not anew:
            return self._start_kernel(name, rest or self.rest, {})
        more = {}
        if is_ours(self.name):
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


def write_kernelspecs(path: Path, kernels: Mapping[str, Sequence[str]]) -> None:
    """Write kernelspecs of these commands into a directory of ``JUPYTER_PATH``."""
    for name, argv in kernels.items():
        directory = path / "kernels" / name
        directory.mkdir(parents=True)
        spec = {"argv": list(argv), "display_name": name, "language": "python"}
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


def kernelkeep(name: str = OURS, root: Path = ROOT, *, options: Sequence[str] = ()) -> Server:
    """kernelkeep of the clone at ``root``, in this Python's environment, as it comes.

    Only the limits on output are off, as in all servers; ``options`` are what else is set.
    """
    command = [sys.executable, "-m", "app", "--port", "{port}", "--token", "{token}"]
    where = ["--root-dir", "{home}", "--state-dir", "{home}/state"]
    return Server(name, [*command, *where, "--no-limit-rate", *options], cwd=root)


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
