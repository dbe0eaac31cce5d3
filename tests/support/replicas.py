"""Several replicas of the service: one PostgreSQL database, one token, and a home for each host."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Self

import psycopg

from app.keeper.protocol import PROTOCOL
from tests.support.home import Home
from tests.support.isolated import IsolatedHome, UserServer
from tests.support.kernelspecs import FAKE_SPECS, write_kernelspecs
from tests.support.processes import kill_all
from tests.support.server import ServerProcess
from tests.support.versions import ServerOfVersion
from tests.support.wall_clock import AHEAD, JumpingServer

__all__ = ["LEASE_SECONDS", "IsolatingReplicas", "Replicas"]

LEASE_SECONDS = 3.0

TAKEOVER_SECONDS = 60.0
"""How long a test waits for a takeover, on a machine that has much to do."""


class _Replica(ServerProcess):
    """A server on a port that is known before."""

    wanted_port = 0

    @property
    def command(self) -> list[str]:
        command = super().command
        command[command.index("--port") + 1] = str(self.wanted_port)
        return command


class _Fast(_Replica, JumpingServer):
    """Its clock is an hour ahead."""


class _Isolating(_Replica, UserServer):
    """Its kernels run as users of their owners'."""


class _Newer(_Replica, ServerOfVersion):
    """It and its keeper are of the next version of what they speak to each other."""

    version = PROTOCOL + 1


class Replicas:
    """A context manager; all methods block. Replicas are known by their names.

    They share ``home``, as those of a host do, unless they are started on another ``host``.
    """

    kind: type[_Replica] = _Replica

    def __init__(self, url: str, *arguments: str, home: Home | None = None) -> None:
        self.url = url
        self.homes = {"": Home() if home is None else home}
        self.token = os.urandom(16).hex()
        self.lease_seconds = LEASE_SECONDS
        self.servers: dict[str, ServerProcess] = {}
        self._arguments = arguments
        write_kernelspecs(self.home.jupyter_path, FAKE_SPECS)

    @property
    def home(self) -> Home:
        """Of those that were started on no other host."""
        return self.homes[""]

    def home_of(self, host: str) -> Home:
        """The home of all replicas of a host."""
        if host not in self.homes:
            self.homes[host] = Home()
            write_kernelspecs(self.homes[host].jupyter_path, FAKE_SPECS)
        return self.homes[host]

    def start(
        self,
        name: str,
        *arguments: str,
        url: str | None = None,
        port: int = 0,
        host: str = "",
        is_fast: bool = False,
        is_newer: bool = False,
    ) -> ServerProcess:
        """Start a replica; the clock of one that ``is_fast`` is an hour ahead."""
        kind = _Newer if is_newer else _Fast if is_fast else self.kind
        server = kind(
            *("--on-shutdown", "keep", "--replica-name", name),
            *("--registry-url", url or self.url, "--lease-seconds", str(self.lease_seconds)),
            *(*self._arguments, *arguments),
            home=self.home_of(host),
            token=self.token,
            env={AHEAD: "3600"} if is_fast else None,
        )
        server.wanted_port = port
        self.servers[name] = server.start()
        return server

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a replica a signal."""
        os.kill(self.servers[name].pid, number)

    def end(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a replica; returns when its process is gone."""
        server = self.servers.pop(name)
        server.send_signal(number)
        server.wait()

    def query(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the registry."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            return connection.execute(statement.encode(), values).fetchall()

    def owner_of(self, kernel_id: str) -> str | None:
        """The name of the replica that has a kernel."""
        rows = self.query(
            "SELECT replica.name FROM kernelkeep.kernel JOIN kernelkeep.replica "
            "ON replica.id = kernel.replica WHERE kernel.id = %s",
            kernel_id,
        )
        return rows[0][0] if rows else None

    def output(self) -> str:
        """What all replicas that are there have written."""
        return "\n".join(
            f"== {name}\n{server.output()[-6000:]}" for name, server in self.servers.items()
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # pytest shows it with the test that has failed
            sys.stdout.write(self.output())
            for host, home in self.homes.items():
                log = home.state_dir / "keeper" / "log"
                if log.exists():
                    sys.stdout.write(f"\n== keeper {host}\n{log.read_text()[-3000:]}\n")
        for name in [*self.servers]:
            self.send(name, signal.SIGCONT)
            self.end(name)
        for home in self.homes.values():
            kill_all(home.processes())
            home.remove()


class IsolatingReplicas(Replicas):
    """Replicas of a host where each owner's kernels run as a user of their own."""

    kind = _Isolating

    def __init__(self, url: str) -> None:
        home = IsolatedHome()
        super().__init__(url, home=home)
        write_kernelspecs(home.jupyter_path, home.specs())
