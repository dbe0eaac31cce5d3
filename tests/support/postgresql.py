"""A PostgreSQL server of its own, in a temporary directory, as Debian has it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Final, Self

import psutil
import psycopg

from tests.support.networks import Network

__all__ = ["PostgreSQL", "tells_password"]

PASSWORD: Final = "s3cret word"  # with a blank, which a URL has to encode

START_TIMEOUT = 60  # seconds


def tells_password(text: str) -> bool:
    """Whether a text has the password, as it is or as a URL encodes it."""
    return PASSWORD.split()[0] in text.lower()


class PostgreSQL:
    """A context manager; all methods block. It listens on loopback, and asks for a password.

    With a ``network`` it is at the far end of its cables instead.
    """

    def __init__(self, network: Network | None = None) -> None:
        self._programs = _directory()
        self._base = Path(tempfile.mkdtemp(prefix="postgresql-"))
        self._data = self._base / "data"
        self._user = _user()
        self._network = network
        self._hosts = [cable.there for cable in network.cables] if network else ["127.0.0.1"]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]

    def url(self, database: str = "postgres", *, port: int | None = None, cable: int = 0) -> str:
        """The URL of a database of this server, or of the same behind another ``port``."""
        password = PASSWORD.replace(" ", "%20")
        where = f"{'127.0.0.1' if port else self._hosts[cable]}:{port or self.port}"
        return f"postgresql://owner:{password}@{where}/{database}"

    def new_database(self, cable: int = 0, *, encoding: str = "UTF8") -> str:
        """The URL of a new database."""
        name = f"test_{os.urandom(6).hex()}"
        with psycopg.connect(self.url(cable=cable), autocommit=True) as connection:
            how = f"TEMPLATE template0 LOCALE 'C' ENCODING '{encoding}'"
            connection.execute(f"CREATE DATABASE {name} {how}".encode())
        return self.url(name, cable=cable)

    def __enter__(self) -> Self:
        try:
            if self._user is not None:
                os.chown(self._base, self._user.pw_uid, self._user.pw_gid)
            password = self._base / "password"
            password.write_text(PASSWORD)
            password.chmod(0o644)
            self._run(
                *("initdb", "--no-sync", "--auth=scram-sha-256", "--username=owner"),
                *(f"--pwfile={password}", "--locale=C.UTF-8", str(self._data)),
            )
            if self._network is not None:
                with (self._data / "pg_hba.conf").open("a") as rules:
                    rules.write("host all all samenet scram-sha-256\n")
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._signal(signal.SIGCONT):
            self.stop()
        shutil.rmtree(self._base, ignore_errors=True)

    def start(self) -> None:
        """Start the server; returns when it can be asked."""
        options = (
            f"-p {self.port} -h {','.join(self._hosts)} -k {self._base} -c fsync=off "
            "-c max_connections=300 "
            "-c shared_buffers=16MB"
        )
        log = str(self._base / "log")
        seconds = str(START_TIMEOUT)
        self._run(
            *("pg_ctl", "-D", str(self._data), "-l", log, "-w", "-t", seconds, "-o", options),
            "start",
        )

    def stop(self, mode: str = "immediate") -> None:
        """Stop the server: at once, as a kill would, or ``fast``, which ends all connections."""
        self._run("pg_ctl", "-D", str(self._data), "-m", mode, "-w", "stop")

    def kill(self) -> None:
        """Kill all processes of the server (SIGKILL); returns when they are gone."""
        killed = self._signal(signal.SIGKILL)
        _, left = psutil.wait_procs(killed, START_TIMEOUT)
        assert not left, f"PostgreSQL is still there: {left}"

    def pause(self) -> None:
        """Stop all processes of the server (SIGSTOP): it takes connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the processes go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> list[psutil.Process]:
        try:
            main = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
            processes = [main, *main.children()]
        except (FileNotFoundError, psutil.NoSuchProcess):
            return []  # it was stopped, or killed
        for process in processes:
            with suppress(psutil.NoSuchProcess):  # of a connection that has just ended
                process.send_signal(number)
        return processes

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        user = self._user
        if self._network is not None:  # which takes root
            assert user is not None, "a network of one's own takes root"
            enter = ("nsenter", f"--net={self._network.path}")
            command = [*enter, f"--setgid={user.pw_gid}", f"--setuid={user.pw_uid}", *command]
            user = None
        done = subprocess.run(
            command,
            cwd=self._base,
            user=None if user is None else user.pw_uid,
            group=None if user is None else user.pw_gid,
            env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if program == "initdb" else subprocess.DEVNULL,
            stderr=subprocess.STDOUT if program == "initdb" else subprocess.DEVNULL,
            timeout=2 * START_TIMEOUT,
            check=False,
        )
        log = self._base / "log"
        said = (done.stdout or b"").decode() or (log.read_text() if log.exists() else "")
        assert done.returncode == 0, f"{program}: {said[-2000:]}"


def _directory() -> Path:
    """Where the programs of the newest PostgreSQL are: Debian has them in no PATH."""
    found = sorted(glob("/usr/lib/postgresql/*/bin"), key=lambda path: int(path.split("/")[4]))
    assert found, "PostgreSQL is missing: apt-get install postgresql"
    return Path(found[-1])


def _user() -> pwd.struct_passwd | None:
    """Whose the server is: PostgreSQL refuses to run as root."""
    return pwd.getpwnam("nobody") if os.geteuid() == 0 else None
