"""How replicas of different hosts reach each other: where one listens, and its certificate.

Both ends show a certificate of one authority, in the role of a replica. A replica that dials knows
from the registry which one it is to find there, and talks to no other.
"""

from __future__ import annotations

import contextlib
import secrets
import socket
import ssl
from pathlib import Path
from typing import Final

from ...agent_options import host_and_port
from ...settings import Settings
from ..handover.store import UnusableRegistry
from ..processes.hosts.authority import Signer, certificates, replica_in, write_private
from ..processes.hosts.errors import HostUnusable
from ..processes.hosts.new_joining import listen_on, seen_address, written

__all__ = ["NO_CRYPTOGRAPHY", "Wire"]

NO_CRYPTOGRAPHY: Final = (
    "replica_listen takes the package cryptography: pip install 'kernelkeep[agents]'"
)


class Wire:
    """The socket on which a replica listens for those of other hosts, and the ends of TLS.

    ``authority`` is the key that all replicas share, as PEM, and is not used where an option names
    the operator's certificate. ``directory`` takes a file for a moment. Raises `UnusableRegistry`.
    """

    def __init__(self, settings: Settings, name: str, directory: Path, authority: bytes) -> None:
        try:
            chain, trusted = _certificates(settings.replica_certificate, name, authority)
            self.certificates = certificates(chain)[0] + trusted
            """The certificate that this replica shows, and behind it those that it trusts."""
            self.server = _context(ssl.PROTOCOL_TLS_SERVER, chain, trusted, directory)
            self.client = _context(ssl.PROTOCOL_TLS_CLIENT, chain, trusted, directory)
        except ImportError:
            raise UnusableRegistry(NO_CRYPTOGRAPHY) from None
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise UnusableRegistry(f"the replica's certificate cannot be used: {error}") from None
        try:
            self.listening = listen_on(settings.replica_listen)
        except HostUnusable as error:
            raise UnusableRegistry(error.message) from None
        port = self.listening.getsockname()[1]
        seen = settings.replica_address or seen_address(settings.replica_listen)
        self.dial = written(*host_and_port(seen, port))
        """``host:port``, where the others dial."""

    def close(self) -> None:
        """Listen no longer."""
        with contextlib.suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()


def _certificates(operators: Path | None, name: str, authority: bytes) -> tuple[str, str]:
    """A key with the certificates to show, and those to trust, as PEM.

    Raises `UnusableRegistry`, and what reading does.
    """
    if operators is None:
        signer = Signer(authority)
        return signer.issue_replica(name), signer.own
    text = operators.read_text()
    chain = certificates(text)
    if not chain or replica_in(chain[0]) != name:
        raise UnusableRegistry(
            "replica_certificate: its first certificate is not for the name "
            f"URI:kernelkeep:replica:{name}"
        )
    if not chain[1:]:
        raise UnusableRegistry("replica_certificate: no certificate follows that vouches for it")
    return text, "".join(chain[1:])


def _context(kind: int, chain: str, trusted: str, directory: Path) -> ssl.SSLContext:
    # Both ends have to show a certificate: whoever has none of this authority is not heard, and
    # told nothing. Whether it is that of a replica, and of which, is looked at by name afterwards.
    context = ssl.SSLContext(kind)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False  # an address may change; the name of the replica is looked at
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if kind == ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0  # nothing is resumed: each connection shows a certificate
    context.load_verify_locations(cadata=trusted)
    path = directory / f"{secrets.token_hex(8)}.pem"  # Python reads certificates from files alone
    try:
        write_private(path, chain.encode())
        context.load_cert_chain(path)
    finally:
        path.unlink(missing_ok=True)
    return context
