"""A real sshd, as the user who runs the tests, and ssh's configuration for it."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from tests.kernels.driver import free_ports
from tests.support.kernelspecs import Spec
from tests.support.networks import Network
from tests.support.processes import eventually_sync, kill_all

WAIT = 20  # seconds


def sshd_path() -> str:
    """Fails with the command that installs it where there is none.

    Raises:
        AssertionError: there is no sshd.
    """
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    assert found is not None, "no sshd: apt-get install openssh-server"
    return found


class Sshd:
    """An sshd with keys and kernels' files in a directory of its own.

    The keepers' files are in ``far``: below a home, these are among its processes, and sshd is not.
    It listens on loopback, or is there in the ``network``, whose cable can be pulled.
    """

    def __init__(self, far: Path, network: Network | None = None) -> None:
        self.address = "127.0.0.1" if network is None else network.there
        self.network = network
        self.directory = directory = Path(tempfile.mkdtemp(prefix="kk-sshd-")).resolve()
        self.far = far
        self.port: int = free_ports()["shell_port"]
        self.config = directory / "ssh_config"
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("host", "user", "stranger"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(directory / name)]
            subprocess.run(keygen, check=True, stdin=subprocess.DEVNULL)
        shutil.copy(directory / "user.pub", directory / "authorized_keys")
        self.trust("host")
        self.write_config()

    def trust(self, key: str) -> None:
        """Have this key, and no other, known as the host's."""
        public = (self.directory / f"{key}.pub").read_text()
        (self.directory / "known_hosts").write_text(f"[{self.address}]:{self.port} {public}")

    def write_config(self, key: str = "user", **more: str | None) -> None:
        """The configuration of ``lab``, by which kernelspecs name the host.

        Of ``more`` lines, those that are None are left out.
        """
        lines: dict[str, str | None] = {
            "HostName": self.address,
            "Port": str(self.port),
            "User": getpass.getuser(),
            "IdentityFile": str(self.directory / key),
            "IdentityAgent": "none",
            "UserKnownHostsFile": str(self.directory / "known_hosts"),
            **more,
        }
        written = {name: value for name, value in lines.items() if value is not None}
        text = "".join(f"    {name} {value}\n" for name, value in written.items())
        self.config.write_text(f"Host lab\n{text}")

    def add_host(self, name: str, other: Sshd) -> None:
        """Have the configuration name another host as well, such as a jump host."""
        text = other.config.read_text().replace("Host lab", f"Host {name}", 1)
        self.config.write_text(self.config.read_text() + text)

    def restart(self, *options: str) -> None:
        """The same with these lines in its configuration."""
        self.stop()
        self.start(*options)

    def start(self, *options: str) -> None:
        """Returns when it listens. ``options`` are lines of its configuration."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        file = self.directory / "sshd_config"
        file.write_text(
            f"Port {self.port}\nListenAddress {self.address}\nHostKey {self.directory}/host\n"
            f"AuthorizedKeysFile {self.directory}/authorized_keys\n"
            f"PidFile none\nStrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "PermitRootLogin yes\nMaxStartups 100:30:200\nMaxSessions 100\nPrintMotd no\n"
            + "".join(f"{line}\n" for line in options)
        )
        enter = [] if self.network is None else ["nsenter", f"--net={self.network.path}"]
        self._process = subprocess.Popen(
            [*enter, sshd_path(), "-D", "-f", str(file), "-E", str(self.directory / "sshd.log")],
            stdin=subprocess.DEVNULL,
        )

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex((self.address, self.port)) == 0

        eventually_sync(listens, WAIT)

    @property
    def is_there(self) -> bool:
        """Whether it was started, and not stopped since."""
        return self._process is not None

    def processes(self) -> list[psutil.Process]:
        """The listener and those of its connections; not what runs in these."""
        assert self._process is not None, "it was not started"
        listener = psutil.Process(self._process.pid)
        found = [listener]
        for child in listener.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # a connection has just ended
                if child.name().startswith("sshd"):
                    found.append(child)
        return found

    def freeze(self) -> None:
        """The network goes away: nothing is answered, and nothing is refused."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def thaw(self) -> None:
        """It comes back, with all that was on its way."""
        for process in self.processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    def cut(self) -> None:
        """Every connection breaks."""
        kill_all(self.processes()[1:])

    def stop(self) -> None:
        """The host refuses connections from now on; those that there are break."""
        if self._process is not None:
            self.thaw()
            # First the listener takes nothing more: a server that has lost its connection makes
            # another at once.
            self._process.send_signal(signal.SIGSTOP)
            connections = self.processes()[1:]
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(WAIT)
            kill_all(connections, timeout=1)
            self._process = None

    def remove(self) -> None:
        """Stop, and remove all files."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def spec(self, options: Mapping[str, Any] | None = None, **more: Any) -> Spec:
        """A kernelspec whose kernels run there; ``options`` are the provisioner's."""
        config = {
            "host": "lab",
            "ssh_config": str(self.config),
            "python": sys.executable,
            "path": str(self.far),
            "directory": str(self.directory),
            **(options or {}),
        }
        stanza = {"provisioner_name": "kernelkeep-ssh", "config": config}
        return Spec(metadata={"kernel_provisioner": stanza}, **more)
