"""How replicas of different hosts reach each other: where one listens, and its certificate.

Both ends show a certificate of one authority, in the role of a replica. A replica that dials knows
from the registry which replica it is to find at an address, and talks to no other.
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
    """The socket on which a replica listens for those of other hosts, and the contexts for TLS.

    ``authority`` is the key that all replicas share, as PEM; it is not used if an option names the
    operator's certificate. In ``directory`` a file with the private key is written, and removed
    once it is loaded. Raises `UnusableRegistry`.
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
        """``host:port``, where replicas of other hosts dial this one."""

    def close(self) -> None:
        """Listen no longer."""
        with contextlib.suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)
        self.listening.close()


def _certificates(operators: Path | None, name: str, authority: bytes) -> tuple[str, str]:
    """A private key with the certificates to show, and the certificates to trust, as PEM.

    Raises `UnusableRegistry`, `OSError` or `ValueError` if the file cannot be read, and
    `ImportError` without the package cryptography.
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
    # Both ends have to show a certificate of this authority: otherwise the handshake fails before
    # anything is read or written. Whether the certificate is a replica's, and which replica's, is
    # checked by the name in it afterwards.
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
