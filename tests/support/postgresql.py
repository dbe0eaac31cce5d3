"""A PostgreSQL server of its own, in a temporary directory, as Debian has it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from glob import glob
from pathlib import Path
from typing import Final, Self

import psycopg

__all__ = ["PostgreSQL"]

PASSWORD: Final = "s3cret word"  # with a blank, which a URL has to encode

START_TIMEOUT = 60  # seconds


class PostgreSQL:
    """A context manager; all methods block. It listens on loopback, and asks for a password."""

    def __init__(self) -> None:
        self._programs = _directory()
        self._base = Path(tempfile.mkdtemp(prefix="postgresql-"))
        self._data = self._base / "data"
        self._user = _user()
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port: int = probe.getsockname()[1]

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        """The URL of a database of this server, or of the same behind another ``port``."""
        password = PASSWORD.replace(" ", "%20")
        return f"postgresql://owner:{password}@127.0.0.1:{port or self.port}/{database}"

    def new_database(self, encoding: str = "UTF8") -> str:
        """The URL of a new database."""
        name = f"test_{os.urandom(6).hex()}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            how = f"TEMPLATE template0 LOCALE 'C' ENCODING '{encoding}'"
            connection.execute(f"CREATE DATABASE {name} {how}".encode())
        return self.url(name)

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
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if (self._data / "postmaster.pid").exists():
            self.resume()
            self.stop()
        shutil.rmtree(self._base, ignore_errors=True)

    def start(self) -> None:
        """Start the server; returns when it can be asked."""
        options = (
            f"-p {self.port} -h 127.0.0.1 -k {self._base} -c fsync=off -c max_connections=300 "
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

    def pause(self) -> None:
        """Stop all processes of the server (SIGSTOP): it takes connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let the processes go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        main = int((self._data / "postmaster.pid").read_text().split()[0])
        children = Path(f"/proc/{main}/task/{main}/children").read_text().split()
        for pid in (main, *map(int, children)):
            os.kill(pid, number)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._programs / program), *arguments]
        done = subprocess.run(
            command,
            cwd=self._base,
            user=None if self._user is None else self._user.pw_uid,
            group=None if self._user is None else self._user.pw_gid,
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
