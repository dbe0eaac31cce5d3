"""One server below a prefix, and every proxy in front of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import servers
from tests.support.proxies import PREFIX, PROXIES, Certificate, Nginx, Proxy
from tests.support.server import ServerProcess

# What has to be below the proxies' timeout, with a second and more to spare.
KEEPALIVE = ("--websocket-ping-interval", "1.5", "--stream-keepalive", "1.5")


@pytest.fixture(scope="module")
def server(request: pytest.FixtureRequest) -> Iterator[ServerProcess]:
    with servers(request.config) as make_server:
        yield make_server(
            *("--root-path", PREFIX, "--trusted-proxies", "127.0.0.1", *KEEPALIVE),
            # Of output too, 5 MB are to come at once.
            *("--no-limit-rate",),
        )


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificate]:
    """One that this process trusts meanwhile."""
    certificate = Certificate(tmp_path_factory.mktemp("certificate"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_FILE", str(certificate.certificate))
        yield certificate


@pytest.fixture(scope="module")
def proxies(
    server: ServerProcess, certificate: Certificate, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Proxy]]:
    """Each of them, in front of :func:`server`."""
    folder: Path = tmp_path_factory.mktemp("proxies")
    with ExitStack() as stack:
        yield [stack.enter_context(kind(server.port, folder, certificate)) for kind in PROXIES]


@pytest.fixture(scope="module")
def nginx(proxies: list[Proxy]) -> Nginx:
    (found,) = [proxy for proxy in proxies if isinstance(proxy, Nginx)]
    return found
