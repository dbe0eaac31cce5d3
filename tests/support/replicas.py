"""Several replicas of the service: one home, one PostgreSQL database, one token."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any, Self

import psycopg

from tests.support.home import Home
from tests.support.kernelspecs import FAKE_SPECS, write_kernelspecs
from tests.support.processes import kill_all
from tests.support.server import ServerProcess

__all__ = ["LEASE_SECONDS", "Replicas"]

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


class Replicas:
    """A context manager; all methods block. Replicas are known by their names."""

    def __init__(self, url: str, *arguments: str) -> None:
        self.url = url
        self.home = Home()
        self.token = os.urandom(16).hex()
        self.servers: dict[str, ServerProcess] = {}
        self._arguments = arguments
        write_kernelspecs(self.home.jupyter_path, FAKE_SPECS)

    def start(
        self, name: str, *arguments: str, url: str | None = None, port: int = 0
    ) -> ServerProcess:
        """Start a replica."""
        server = _Replica(
            *("--on-shutdown", "keep", "--replica-name", name),
            *("--registry-url", url or self.url, "--lease-seconds", str(LEASE_SECONDS)),
            *(*self._arguments, *arguments),
            home=self.home,
            token=self.token,
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
            log = self.home.state_dir / "keeper" / "log"
            if log.exists():
                sys.stdout.write(f"\n== keeper\n{log.read_text()[-3000:]}\n")
        for name in [*self.servers]:
            self.send(name, signal.SIGCONT)
            self.end(name)
        kill_all(self.home.processes())
        self.home.remove()
