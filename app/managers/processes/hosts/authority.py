"""Who vouches for whom on the connections that keepers on other hosts make: the certificates.

The authority is this service's own, in its state directory, and signs nothing for anybody else. A
keeper trusts what the join document names. It needs no more than Python's own ``ssl`` for that,
which makes no keys: so this server makes a keeper's key along with its certificate. Whoever has the
authority's key could impersonate any keeper anyhow, so that the server has seen a key gives nobody
anything. It is sent over TLS alone, kept by the keeper in a file of its own, and of no use after
the certificate's short life.

Clocks may differ. What a keeper checks by its own clock begins a day in the past and ends years
in the future; the short lives of keepers' certificates are checked by the clock that they were made
by.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import secrets
import ssl
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .errors import EngineNotInstalled, HostUnusable

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

__all__ = ["SERVER_NAME", "Authority", "Credential", "credential_of"]

SERVER_NAME: Final = "service.kernelkeep.internal"
"""The name that this service's own certificate is for, whatever the address that is dialled."""

PAST: Final = datetime.timedelta(days=1)
"""How long before they are made certificates are valid: other clocks may be behind."""

LONG: Final = datetime.timedelta(days=3650)

_CREDENTIAL: Final = re.compile(
    r"kernelkeep:keeper:([0-9A-Za-z._-]{1,100}):([0-9]{1,12})"
).fullmatch
_CERTIFICATE: Final = re.compile(
    r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL
)


class Credential(NamedTuple):
    """Which keeper somebody is, and of which generation."""

    keeper_id: str
    generation: int

    @property
    def uri(self) -> str:
        """The name in a certificate."""
        return f"kernelkeep:keeper:{self.keeper_id}:{self.generation}"


def credential_of(certificate: dict[str, Any] | None) -> Credential | None:
    """Who a certificate names that TLS has verified (`ssl.SSLSocket.getpeercert`), if any does."""
    for kind, name in (certificate or {}).get("subjectAltName", ()):
        if kind == "URI" and (found := _CREDENTIAL(name)):
            return Credential(found[1], int(found[2]))
    return None


class Authority:
    """The authority of a state directory, in ``directory``, which is made with its key if need be.

    ``server_file`` is the operator's: a private key, this server's certificate, and behind it those
    that vouch for it. Without it the server's certificate is the authority's. Raises
    `EngineNotInstalled`, and `HostUnusable` for files that cannot be used.
    """

    def __init__(
        self, directory: Path, names: Sequence[str] = (), server_file: Path | None = None
    ) -> None:
        try:
            import cryptography  # noqa: F401
        except ImportError:
            text = "Keepers that dial in take the package cryptography: pip install "
            raise EngineNotInstalled(text + "'kernelkeep[agents]'") from None
        self._server_file = server_file
        try:
            self._key, self._certificate = _authority(directory)
            own = _pem(self._certificate)
            server = directory / "server.pem" if server_file is None else server_file
            if server_file is None:
                _write(server, self._server(names))
                self.trusted = own
            else:
                chain = _CERTIFICATE.findall(server.read_text())
                self.trusted = "".join(chain[1:] or chain)
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.minimum_version = ssl.TLSVersion.TLSv1_3
            self.context.load_cert_chain(server)
            self.context.load_verify_locations(cadata=own)
            # A keeper that joins has none yet; one that has another authority's is refused.
            self.context.verify_mode = ssl.CERT_OPTIONAL
            self.context.num_tickets = 0  # nothing is resumed: each connection shows a certificate
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise HostUnusable(f"The certificates for keepers cannot be used: {error}") from error

    @property
    def server_name(self) -> str | None:
        """The name that keepers are to find in the server's certificate; None: the address."""
        return SERVER_NAME if self._server_file is None else None

    def _server(self, names: Sequence[str]) -> bytes:
        from cryptography import x509

        found = [SERVER_NAME, *dict.fromkeys(names)]
        key = _new_key()
        alternatives = x509.SubjectAlternativeName([_general_name(name) for name in found])
        return _key_pem(key) + _pem(self._sign(key, LONG, alternatives, server=True)).encode()

    def issue(self, credential: Credential, seconds: float) -> str:
        """A new key and a certificate for a keeper, as PEM, valid for so many seconds from now."""
        from cryptography import x509

        key = _new_key()
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(credential.uri)])
        life = datetime.timedelta(seconds=min(seconds, LONG.total_seconds()))
        return _key_pem(key).decode() + _pem(self._sign(key, life, names, server=False))

    def _sign(
        self,
        key: EllipticCurvePrivateKey,
        life: datetime.timedelta,
        names: x509.SubjectAlternativeName,
        *,
        server: bool,
    ) -> x509.Certificate:
        from cryptography import x509
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.x509.oid import ExtendedKeyUsageOID

        usage = ExtendedKeyUsageOID.SERVER_AUTH if server else ExtendedKeyUsageOID.CLIENT_AUTH
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            _builder(_name("kernelkeep"), self._certificate.subject, life, key)
            .add_extension(names, critical=False)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(signer, critical=False)
            .sign(self._key, SHA256())
        )


def _authority(directory: Path) -> tuple[EllipticCurvePrivateKey, x509.Certificate]:
    """The key and certificate in a directory. Raises `OSError` and `ValueError`."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / "authority.pem"
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # another server of this directory was faster
            _write(path, _new_authority(), anew=True)
    text = path.read_bytes()
    key = load_pem_private_key(text, None)
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ValueError(f"{path} is not what a server has written")
    return key, x509.load_pem_x509_certificate(text)


def _new_authority() -> bytes:
    from cryptography import x509
    from cryptography.hazmat.primitives.hashes import SHA256

    key = _new_key()
    name = _name(f"kernelkeep {secrets.token_hex(8)}")
    unused = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment")
    usage = dict.fromkeys((*unused, "key_agreement", "encipher_only", "decipher_only"), False)
    certificate = (
        _builder(name, name, LONG, key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, SHA256())
    )
    return _key_pem(key) + _pem(certificate).encode()


def _builder(
    subject: x509.Name, issuer: x509.Name, life: datetime.timedelta, key: EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    from cryptography import x509

    now = _now()
    return x509.CertificateBuilder(
        subject_name=subject,
        issuer_name=issuer,
        public_key=key.public_key(),
        serial_number=x509.random_serial_number(),
        not_valid_before=now - PAST,
        not_valid_after=now + life,
    )


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _name(text: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _general_name(text: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ip_address(text))
    except ValueError:
        return x509.DNSName(text)


def _new_key() -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _key_pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def _pem(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode()


def _write(path: Path, data: bytes, *, anew: bool = False) -> None:
    """Write a file (0600), never there without its content; ``anew``: not in another's place."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(descriptor)
        if anew:
            os.link(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
