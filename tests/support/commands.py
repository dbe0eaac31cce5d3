"""Commands, started again and again by a process that has imported them, and forks each time.

To import the service costs most of a second of work, ten times what the start of a server takes
besides. Tests of the start itself use the real command (`CommandServer`).

The same process ends what is left when the tests are killed: it sees the end of its socket.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Final, NoReturn

import psutil

from tests.support.home import Home
from tests.support.processes import kill_all, mentions
from tests.support.rooms import REPOSITORY

TIMEOUT: Final = 90  # seconds; one is work enough, on a machine with nothing else to do
MODULES: Final = ("app", "uvicorn")  # that are started
ASKED_BYTES: Final = 200_000  # arguments and environment of one process: most that a socket takes
TOLD_BYTES: Final = 20  # a process id, or an exit code
SEARCHES: Final = 5  # for processes that are left; one that is killed may have started others


class Commands:
    """Starts processes like those of ``python -m app`` and ``python -m uvicorn``.

    Close it when they have ended.

    What is read when the service is imported (the home directory) is the same for all of them, and
    so is their command line, as the operating system has it.
    """

    def __init__(self) -> None:
        self._home: Home | None = None  # until the first is asked for

    def _open(self) -> None:
        self._home = Home()
        self._environment = self._home.environment()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.settimeout(TIMEOUT)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.commands", str(theirs.fileno())],
                cwd=REPOSITORY,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )

    def close(self) -> None:
        """End the process that forks, all that it has forked, and what is left in its homes."""
        if self._home is None:
            return
        self._socket.close()
        try:
            self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._home.remove()

    def watch(self, home: Home) -> None:
        """Should this process be killed, end what runs in a home, and remove it."""
        if self._home is None:
            self._open()
        self._socket.send(json.dumps({"home": str(home.path)}).encode())

    def start(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        stdout: int,
        stderr: int,
    ) -> Forked:
        """``python -m MODULE ARGUMENTS`` in a process of its own, which works in ``directory``.

        The module is one of `MODULES`.
        """
        if self._home is None:
            self._open()
        asked = {
            "module": module,
            "arguments": [*arguments],
            "environment": dict(environment),
            "directory": str(directory),
        }
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            descriptors = [theirs.fileno(), stdout, stderr]
            socket.send_fds(self._socket, [json.dumps(asked).encode()], descriptors)
        return Forked(ours)

    def run(
        self,
        *arguments: str,
        home: Home,
        env: Mapping[str, str] | None = None,
        module: str = "app",
    ) -> subprocess.CompletedProcess[str]:
        """For what ends by itself: bad options. The state directory is that of ``home``.

        Raises:
            subprocess.TimeoutExpired: it did not end within `TIMEOUT` seconds.
        """
        environment = {"KERNELKEEP_STATE_DIR": str(home.state_dir), **home.environment(env)}
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            process = self.start(
                module,
                arguments,
                environment=environment,
                directory=home.path,
                stdout=stdout.fileno(),
                stderr=stderr.fileno(),
            )
            code = process.wait(TIMEOUT)
            return subprocess.CompletedProcess(arguments, code, _text(stdout), _text(stderr))


def _text(file: IO[str]) -> str:
    file.seek(0)
    return file.read()


class Forked:
    """A process that was forked for us: as much of `subprocess.Popen` as tests need."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(TIMEOUT)
        self._connection = connection
        self._lock = threading.Lock()  # two threads may wait for it
        self.pid = int(connection.recv(TOLD_BYTES))
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, as `subprocess.Popen.wait` has it."""
        with self._lock:
            return self._wait(timeout)

    def _wait(self, timeout: float | None) -> int:
        if self.returncode is None:
            self._connection.settimeout(timeout)
            try:
                self.returncode = int(self._connection.recv(TOLD_BYTES))
            except (TimeoutError, BlockingIOError):
                raise subprocess.TimeoutExpired("python -m app", timeout or 0) from None
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code, or None while it runs."""
        # Whoever has the lock waits in another thread, and is told first.
        if self._lock.acquire(blocking=False):
            try:
                with suppress(subprocess.TimeoutExpired):
                    self._wait(0)
            finally:
                self._lock.release()
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has ended just now
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def main() -> None:
    """Fork for each request, until the other end of the socket is closed; then end what is left."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that wait for others
    homes: set[str] = set()
    with socket.socket(fileno=int(sys.argv[1])) as requests:
        while True:
            data, descriptors, _, _ = socket.recv_fds(requests, ASKED_BYTES, 3)
            if not data:
                break
            asked = json.loads(data)
            if "home" in asked:
                homes.add(asked["home"])
                continue
            # What takes a second, the first time; IPython is what looks for kernelspecs.
            import IPython.paths  # noqa: F401

            import app.serving  # noqa: F401

            # A collection in a process that was forked would look at all of it, and copy it.
            gc.collect()
            gc.freeze()
            if os.fork() == 0:
                requests.close()
                _attend(asked, *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)
    _end(homes)


def _end(homes: set[str]) -> NoReturn:
    """End every process in the homes that are still there, and this process with its children.

    A test that came to its end has removed its homes. Keepers and kernels are in process groups of
    their own, and some are to outlive their server.
    """
    left = [home for home in homes if os.path.isdir(home)]
    for _ in range(SEARCHES if left else 0):
        found = [
            process
            for process in psutil.process_iter()
            if any(mentions(process.pid, home) for home in left)
        ]
        if not found:
            break
        kill_all(found)
    for home in [*left, str(Path(os.environ["HOME"]).parent)]:
        shutil.rmtree(home, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)
    sys.exit("SIGKILL has ended this process")


def _attend(asked: dict[str, Any], telling: int, stdout: int, stderr: int) -> NoReturn:
    """Fork the command, tell its process id and then its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        pid = os.fork()
        if pid == 0:
            os.close(telling)
            _become(asked, stdout, stderr)
        os.write(telling, str(pid).encode())
        for descriptor in (stdout, stderr, 0, 1, 2):  # whoever reads the output waits for its end
            os.close(descriptor)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # nobody wants to know
        _, status = os.waitpid(pid, 0)
        os.write(telling, str(os.waitstatus_to_exitcode(status)).encode())
    finally:
        os._exit(0)


def _become(asked: dict[str, Any], stdout: int, stderr: int) -> NoReturn:
    """In the child: be the command with these arguments and this environment."""
    code: Any = 1
    try:
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        for descriptor in {stdout, stderr}:
            os.close(descriptor)
        # Whatever runs the tests may ignore the end of its terminal, as nohup does.
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        os.chdir(asked["directory"])
        os.environ.clear()
        os.environ.update(asked["environment"])
        time.tzset()
        path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        sys.path[1:1] = [directory for directory in path if directory not in ("", *sys.path)]
        if asked["module"] == "uvicorn":
            from uvicorn.main import main as uvicorn

            uvicorn(asked["arguments"])
        from app.cli import main as command

        command(asked["arguments"])
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
