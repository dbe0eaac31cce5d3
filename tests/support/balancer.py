"""nginx in front of three replicas, with the template of deploy/."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.support.programs import Program
from tests.support.proxies import DEPLOY, Certificate, nginx_arguments, program

__all__ = ["PROXY_SECONDS", "Balancer", "free_port"]

PROXY_SECONDS: Final = 6
"""After so many seconds of silence nginx gives a replica up, and asks another."""


class Balancer(Program):
    """nginx around deploy/replicas/nginx.conf.template, without TLS.

    It gives up a replica that says nothing for ``silence`` seconds.
    """

    def __init__(
        self, directory: Path, ports: Sequence[int], *, silence: int = PROXY_SECONDS
    ) -> None:
        super().__init__(directory, directory / "output")
        self._ports = ports
        self._silence = silence
        self.port = free_port()
        self._certificate = Certificate(directory)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def ws_url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        template = (DEPLOY / "replicas/nginx.conf.template").read_text()
        one, two, three = (f"127.0.0.1:{port}" for port in self._ports)
        values = {
            **{"LISTEN": f"127.0.0.1:{self.port}", "TIMEOUT": f"{self._silence}s"},
            **{
                "ONE": one,
                "TWO": two,
                "THREE": three,
                "ACCESS_LOG": str(self._directory / "access"),
            },
            "CERTIFICATE": str(self._certificate.certificate),
            "CERTIFICATE_KEY": str(self._certificate.key),
        }
        return [
            program("nginx", "nginx-light"),
            *nginx_arguments(self._directory, template, values),
        ]

    def environment(self) -> Mapping[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self._directory)}

    def urls(self) -> Sequence[str]:
        return [f"{self.url}/api"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
