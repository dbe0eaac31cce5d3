"""Makes the `Joining` of a server, to which keepers dial in, by the options."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from ....agent_options import host_and_port
from ....settings import Settings
from .authority import Authority, check_installed, new_authority
from .errors import HostUnusable
from .joining import Joining, Replicas

__all__ = ["check_joining", "listen_on", "new_joining", "seen_address", "written"]

BACKLOG: Final = 1024
"""How many connections of keepers may wait to be accepted: all keepers may dial at one moment."""


def check_joining(settings: Settings) -> None:
    """Raise `HostUnusable` if keepers could not dial in as the options want it."""
    if settings.agent_listen:
        check_installed()
        # What replicas share is in their registry.
        _authority(settings, new_authority() if settings.replicated else None)
        listen_on(settings.agent_listen).close()


def new_joining(settings: Settings, directory: Path, replicas: Replicas | None = None) -> Joining:
    """The `Joining` of this server. Raises `HostUnusable`.

    ``directory`` has the files of this run of the server. ``replicas`` is what the server shares
    with others, if it is one of several replicas.
    """
    if not settings.agent_listen:
        return Joining(directory)
    authority = _authority(settings, None if replicas is None else replicas.authority)
    server = listen_on(settings.agent_listen)
    port = server.getsockname()[1]
    addresses = [written(*host_and_port(each, port)) for each in _addresses(settings)]
    return Joining(
        *(directory / "invitations", authority, server, addresses),
        life=settings.orphan_timeout,
        replicas=replicas,
    )


def _authority(settings: Settings, pem: bytes | None) -> Authority:
    names = [host_and_port(each, 0)[0] for each in _addresses(settings)]
    return Authority(settings.state_dir / "authority", names, settings.agent_certificate, pem)


def _addresses(settings: Settings) -> list[str]:
    """The addresses that keepers dial, each with a port or without."""
    if settings.agent_addresses:
        return settings.agent_addresses
    return [seen_address(settings.agent_listen)]


def seen_address(listens: str) -> str:
    """The address at which others reach a socket that listens here, if no option names one."""
    host, _ = host_and_port(listens, 0)
    if host in ("0.0.0.0", "::"):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def written(host: str, port: int) -> str:
    """The address and port as one text; an IPv6 address is in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen_on(address: str) -> socket.socket:
    """A socket that listens on ``host:port``. Raises `HostUnusable`."""
    host, port = host_and_port(address, 0)
    server: socket.socket | None = None
    try:
        family, kind, protocol, _, found = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        server = socket.socket(family, kind, protocol)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(found)
        server.listen(BACKLOG)
    except OSError as error:
        if server is not None:
            server.close()
        raise HostUnusable(f"nobody can listen on {address}: {error}") from error
    server.setblocking(False)
    return server
