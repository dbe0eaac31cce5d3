"""A real server process, watched from outside."""

from __future__ import annotations

import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final, Self

from tests.support.commands import MODULES, Commands, Forked
from tests.support.home import Home
from tests.support.processes import eventually_sync, kill_all

REPOSITORY = Path(__file__).parents[2]
START_TIMEOUT = 90  # seconds; one is work enough, on a machine with nothing else to do
STOP_TIMEOUT = 30  # seconds
# Seconds for processes that were killed together with the server to vanish from the process table.
SETTLE_TIMEOUT = 15
# A server may end by itself after SIGTERM, or by raising the signal again, as uvicorn does.
GRACEFUL = (0, -signal.SIGTERM)

INHERITED: Final = ("HOME", "PYTHONPATH", "PYTHONWARNINGS", "PYTHONASYNCIODEBUG", "LD_LIBRARY_PATH")
"""Variables that count when Python starts or the service is imported: no fork for other ones.

But for a ``PYTHONPATH`` that has modules alone, and nothing that runs when Python starts.
"""


class ServerProcess:
    """``python -m app`` on a free port of 127.0.0.1, with a home of its own.

    ``arguments`` go behind the ones that every server gets, ``env`` over its minimal environment.
    A ``home`` that is given is not removed at the end, so that a second server can take over
    what the first left.

    All methods block; in an asynchronous test whose own sockets must answer meanwhile, call
    ``await asyncio.to_thread(server.stop)``.
    """

    directory = REPOSITORY  # where it is started

    commands: ClassVar[Commands | None] = None
    """What forks servers in the place of ``python -m app``: `tests.conftest` sets it."""

    def __init__(
        self,
        *arguments: str,
        env: Mapping[str, str] | None = None,
        home: Home | None = None,
        token: str | None = None,
    ) -> None:
        self.home = home or Home()
        self.token = token or secrets.token_hex(16)
        self._owns_home = home is None
        self._arguments = arguments
        self._env = env
        self._process: subprocess.Popen[bytes] | Forked | None = None
        self._reader: threading.Thread | None = None
        self._lines: list[str] = []
        self._announced = threading.Event()
        self._port = 0

    # -- where it is

    @property
    def port(self) -> int:
        return self._port

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``, without a slash at the end."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server was not started"
        return self._process.pid

    # -- its life, in time order

    @property
    def credentials(self) -> Sequence[str]:
        return ("--token", self.token)

    @property
    def command(self) -> list[str]:
        home = self.home
        where = ["--host", "127.0.0.1", "--port", "0", *self.credentials]
        folders = ["--root-dir", str(home.root_dir), "--state-dir", str(home.state_dir)]
        return [sys.executable, "-m", "app", *where, *folders, *self._arguments]

    @property
    def environment(self) -> dict[str, str]:
        return self.home.environment(self._env)

    def start(self, timeout: float = START_TIMEOUT) -> Self:
        """Returns when the server has announced its URL.

        Raises:
            AssertionError: it ended before, or said nothing for ``timeout`` seconds.
        """
        assert self._process is None, "a server starts once"
        if ServerProcess.commands is not None:  # also of a class that is not forked by it
            ServerProcess.commands.watch(self.home)
        reading, writing = os.pipe()
        try:
            self._process = self._fork(writing) or self._run(writing)
        finally:
            os.close(writing)
        self._reader = threading.Thread(target=self._read, args=[reading], daemon=True)
        self._reader.start()
        announced = self._announced.wait(timeout)
        if not self._port:
            self.kill()
            what = "ended without" if announced else f"lived {timeout} s without"
            code = self._process.returncode
            raise AssertionError(
                f"the server {what} telling its URL (code {code})\n{self.output()}"
            )
        return self

    def _run(self, output: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            self.command,
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )

    def _fork(self, output: int) -> Forked | None:
        """The same by a fork, if all that is asked for can be had after one."""
        command, environment, ours = self.command, self.environment, self.home.environment()
        if (
            self.commands is None
            or command[:2] != [sys.executable, "-m"]
            or command[2] not in MODULES
            or self.directory != REPOSITORY
            or not _can_be_had_later(environment, ours)
        ):
            return None
        return self.commands.start(
            command[2],
            command[3:],
            environment=environment,
            directory=self.home.path,  # by which the home knows it
            stdout=output,
            stderr=output,
        )

    @property
    def announcement(self) -> str:
        """A regular expression for the line that tells the URL; its group is the port."""
        return rf"http://127\.0\.0\.1:(\d+)/\?token={re.escape(self.token)}"

    def _read(self, output: int) -> None:
        with open(output, errors="replace") as stdout:
            for line in stdout:
                self._lines.append(line)
                match = re.search(self.announcement, line)
                if match and not self._announced.is_set():
                    self._port = int(match[1])
                    self._announced.set()
        # No further line can come: whoever waits for the announcement need not wait on.
        self._announced.set()

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """The exit code (minus the number of a signal) of a server that ends by itself."""
        assert self._process is not None, "the server was not started"
        return self._process.wait(timeout)

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server was not started"
        self._process.send_signal(number)

    def stop(self, timeout: float = STOP_TIMEOUT) -> None:
        """SIGTERM, then SIGKILL after ``timeout`` seconds; does nothing if it was done before.

        Raises:
            AssertionError: it had to be killed, ended with an error, or left something behind:
                processes, sockets, connection files (removed all the same).
        """
        if self._process is None or self._reader is None:
            return
        faults = [*self._terminate(timeout), *self._remains()]
        self._reader.join(SETTLE_TIMEOUT)
        self.kill()
        if faults:
            raise AssertionError("\n".join([*faults, "its output:", self.output()]))

    def _terminate(self, timeout: float) -> list[str]:
        assert self._process is not None
        self._process.terminate()
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(SETTLE_TIMEOUT)
            return [f"the server was alive {timeout} s after SIGTERM"]
        return [] if code in GRACEFUL else [f"the server ended with code {code}"]

    def _remains(self) -> list[str]:
        eventually_sync(lambda: not self.home.processes(), SETTLE_TIMEOUT)
        return [
            *(f"left the process {process}" for process in self.home.processes()),
            *(f"left the file {path}" for path in self.home.leftovers()),
        ]

    def kill(self) -> None:
        """SIGKILL for the server and all that it started; checks nothing, may be repeated."""
        self._kill()
        kill_all(self.home.processes())
        if self._owns_home:
            self.home.remove()

    def crash(self) -> None:
        """SIGKILL for the server only: its kernels live on, for the next server of this home."""
        assert not self._owns_home, "nobody would clean up: give the server a home"
        self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(SETTLE_TIMEOUT)
        # From here on there is nothing to stop. The thread ends with the last process that holds
        # the pipe, which may be a kernel.
        self._reader = None

    # -- what it said

    def mark(self) -> int:
        """The present end of the output, for :meth:`output`."""
        return len(self._lines)

    def output(self, since: int = 0) -> str:
        """All that the server wrote on stdout and stderr since a mark."""
        return "".join(self._lines[since:])


def _can_be_had_later(environment: Mapping[str, str], ours: Mapping[str, str]) -> bool:
    """Whether a process that was forked can have this environment; ``ours`` is the first one's."""
    different = {
        name for name in INHERITED if name in environment and environment[name] != ours.get(name)
    }
    if different != {"PYTHONPATH"}:
        return not different
    directories = environment["PYTHONPATH"].split(os.pathsep)
    return not any(Path(path, "sitecustomize.py").exists() for path in directories)


class CommandServer(ServerProcess):
    """Always ``python -m app``, never a fork: for tests of the start itself."""

    commands = None


class OpenServer(ServerProcess):
    """``--auth none``: everybody on this machine may come in."""

    @property
    def credentials(self) -> Sequence[str]:
        return ("--auth", "none")

    @property
    def announcement(self) -> str:
        return r"http://127\.0\.0\.1:(\d+)/$"


class UvicornServer(ServerProcess):
    """The same application under ``uvicorn app.main:app``, its options in the environment.

    What plain ASGI cannot say (batched writes, among others) this server goes without.
    """

    @property
    def command(self) -> list[str]:
        where = ["--host", "127.0.0.1", "--port", "0"]
        return [sys.executable, "-m", "uvicorn", "app.main:app", *where, *self._arguments]

    @property
    def environment(self) -> dict[str, str]:
        options = {
            "KERNELKEEP_TOKEN": self.token,
            "KERNELKEEP_ROOT_DIR": str(self.home.root_dir),
            "KERNELKEEP_STATE_DIR": str(self.home.state_dir),
        }
        return {**super().environment, **options}

    @property
    def announcement(self) -> str:
        return r"Uvicorn running on http://127\.0\.0\.1:(\d+)"


class UvicornCommandServer(UvicornServer):
    """Always ``python -m uvicorn``, never a fork."""

    commands = None


def run_server(
    *arguments: str,
    home: Home,
    env: Mapping[str, str] | None = None,
    timeout: float = START_TIMEOUT,
) -> subprocess.CompletedProcess[str]:
    """``python -m app`` with just these arguments, for what ends by itself (bad options, --help).

    It is forked where it can be: what ``--help`` prints has the name of the command in it.

    Raises:
        subprocess.TimeoutExpired: it did not end within ``timeout`` seconds (it is killed).
    """
    commands, environment = ServerProcess.commands, home.environment(env)
    can_fork = "--help" not in arguments and _can_be_had_later(environment, home.environment())
    if commands is not None and can_fork:
        return commands.run(*arguments, home=home, env=env)
    return subprocess.run(
        [sys.executable, "-m", "app", *arguments],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
