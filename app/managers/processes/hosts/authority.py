"""The certificates of connections between hosts: of keepers and replicas, and their authority.

The authority is this service's own, in its state directory or in the registry that its replicas
share, and signs nothing for other services. A certificate says in which role it may be shown: as a
keeper's, or as a replica's; each end checks the role, so that neither passes for the other.

A keeper trusts the certificates that the join document names. It needs no more than Python's own
``ssl`` for that, which makes no keys: so this server makes a keeper's key along with its
certificate. That the server has seen the key gives it nothing: with the authority's key it could
impersonate any keeper anyhow. The key is sent over TLS alone, stored by the keeper in a file of its
own, and of no use after the certificate's short life.

Clocks may differ. Certificates that a keeper checks, by its own clock, begin a day in the past and
end years in the future. The short lives of keepers' certificates are checked by the server, whose
clock they were made by.
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

__all__ = [
    "SERVER_NAME",
    "Authority",
    "Credential",
    "Signer",
    "certificates",
    "check_installed",
    "credential_of",
    "new_authority",
    "replica_in",
    "replica_of",
    "takes",
    "write_private",
]

SERVER_NAME: Final = "service.kernelkeep.internal"
"""The name that this service's own certificate is for, whatever the address that is dialled."""

PAST: Final = datetime.timedelta(days=1)
"""How long before its making a certificate is valid already: other clocks may be behind."""

LONG: Final = datetime.timedelta(days=3650)

_CREDENTIAL: Final = re.compile(
    r"kernelkeep:keeper:([0-9A-Za-z._-]{1,100}):([0-9]{1,12})"
).fullmatch
_REPLICA: Final = re.compile(r"kernelkeep:replica:([0-9A-Za-z._-]{1,100})").fullmatch
_CERTIFICATE: Final = re.compile(
    r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n?", re.DOTALL
)


class Credential(NamedTuple):
    """The keeper that a certificate is for, and its generation."""

    keeper_id: str
    generation: int

    @property
    def uri(self) -> str:
        """The name (a URI) that the keeper's certificate has."""
        return f"kernelkeep:keeper:{self.keeper_id}:{self.generation}"


def credential_of(certificate: dict[str, Any] | None) -> Credential | None:
    """The keeper that a verified certificate (`ssl.SSLSocket.getpeercert`) names, or None."""
    for kind, name in (certificate or {}).get("subjectAltName", ()):
        if kind == "URI" and (found := _CREDENTIAL(name)):
            return Credential(found[1], int(found[2]))
    return None


def replica_of(certificate: dict[str, Any] | None) -> str | None:
    """The name of the replica that a verified certificate is of, if it is a replica's."""
    for kind, name in (certificate or {}).get("subjectAltName", ()):
        if kind == "URI" and (found := _REPLICA(name)):
            return found[1]
    return None


def replica_in(pem: str) -> str | None:
    """As `replica_of`, for a certificate as PEM. Raises `ValueError` if it is no certificate."""
    from cryptography import x509

    extensions = x509.load_pem_x509_certificate(pem.encode()).extensions
    try:
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return replica_of({"subjectAltName": [("URI", uri) for uri in uris]})


def check_installed() -> None:
    """Raise `EngineNotInstalled` without the package that makes certificates."""
    try:
        import cryptography  # noqa: F401
    except ImportError:
        text = "Keepers that dial in take the package cryptography: pip install "
        raise EngineNotInstalled(text + "'kernelkeep[agents]'") from None


def certificates(pem: str) -> list[str]:
    """The certificates in a PEM text, in their order."""
    return _CERTIFICATE.findall(pem)


def takes(theirs: str, ours: str) -> bool:
    """Whether an end with the certificates ``ours`` accepts an end with ``theirs``, as PEM.

    The first certificate of each end is its own; the others are those that it trusts, and shows
    along with its own. A certificate that cannot be read or checked here counts as accepted: the
    TLS handshake decides later.
    """
    from cryptography import x509

    try:
        shown, *between = x509.load_pem_x509_certificates(theirs.encode())
        trusted = x509.load_pem_x509_certificates(ours.encode())[1:]
    except ValueError:
        return True
    path = [shown]
    while path:
        certificate = path.pop()
        if certificate in trusted or any(_has_signed(one, certificate) for one in trusted):
            return True
        path += [one for one in between if _has_signed(one, certificate)]
        between = [one for one in between if one not in path]
    return False


def _has_signed(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    if certificate.issuer != issuer.subject:
        return False
    try:
        certificate.verify_directly_issued_by(issuer)
    except InvalidSignature:
        return False
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return True
    return True


class Signer:
    """The key of an authority and its certificate, as PEM (`new_authority`).

    Raises `ValueError` for a text that is no such key and certificate, and `ImportError` without
    the package cryptography.
    """

    def __init__(self, pem: bytes) -> None:
        from cryptography import x509
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        key = load_pem_private_key(pem, None)
        if not isinstance(key, EllipticCurvePrivateKey):
            raise ValueError("the authority's key is not what a server has written")
        self._key = key
        self._certificate = x509.load_pem_x509_certificate(pem)

    @property
    def own(self) -> str:
        """The authority's certificate as PEM; an end that trusts it accepts those it has signed."""
        return _pem(self._certificate)

    def issue(self, credential: Credential, seconds: float) -> str:
        """A new key and a certificate for a keeper, as PEM, valid for so many seconds from now."""
        life = datetime.timedelta(seconds=min(seconds, LONG.total_seconds()))
        return self._issue(credential.uri, life, client=True)

    def issue_replica(self, name: str) -> str:
        """A new key and a certificate for the replica of this name, as PEM, for both ends."""
        return self._issue(f"kernelkeep:replica:{name}", LONG, client=True, server=True)

    def issue_server(self, names: Sequence[str]) -> str:
        """A new key and a certificate for a server that keepers dial, by these names, as PEM."""
        key = _new_key()
        found = [_general_name(name) for name in names]
        return _key_pem(key) + _pem(self._sign(key, LONG, found, server=True))

    def _issue(
        self, uri: str, life: datetime.timedelta, *, client: bool = False, server: bool = False
    ) -> str:
        from cryptography import x509

        key = _new_key()
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
        return _key_pem(key) + _pem(self._sign(key, life, names, client=client, server=server))

    def _sign(
        self,
        key: EllipticCurvePrivateKey,
        life: datetime.timedelta,
        names: Sequence[x509.GeneralName],
        *,
        client: bool = False,
        server: bool = False,
    ) -> x509.Certificate:
        from cryptography import x509
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.x509.oid import ExtendedKeyUsageOID

        roles = (
            (server, ExtendedKeyUsageOID.SERVER_AUTH),
            (client, ExtendedKeyUsageOID.CLIENT_AUTH),
        )
        usage = [role for is_meant, role in roles if is_meant]
        signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        return (
            _builder(_name("kernelkeep"), self._certificate.subject, life, key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.ExtendedKeyUsage(usage), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(signer, critical=False)
            .sign(self._key, SHA256())
        )


class Authority(Signer):
    """The authority of a service that keepers dial: it signs, and has the server's TLS context.

    Its key is in ``directory``, where both are made if need be; or ``pem`` is the key with its
    certificate, as the replicas of a registry share them. ``server_file`` is the operator's: a
    private key, this server's certificate, and then the certificates that vouch for it. Without it
    the authority signs the server's certificate. Raises `EngineNotInstalled`, and `HostUnusable`
    for files that cannot be used.
    """

    def __init__(
        self,
        directory: Path,
        names: Sequence[str] = (),
        server_file: Path | None = None,
        pem: bytes | None = None,
    ) -> None:
        check_installed()
        self._server_file = server_file
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            super().__init__(_authority(directory) if pem is None else pem)
            own = self.own
            # Each replica of a directory has a certificate of its own, and reads it at once.
            name = "server.pem" if pem is None else f"server.{secrets.token_hex(4)}.pem"
            server = directory / name if server_file is None else server_file
            if server_file is None:
                found = [SERVER_NAME, *dict.fromkeys(names)]
                write_private(server, self.issue_server(found).encode())
                self.trusted = own
            else:
                chain = certificates(server.read_text())
                self.trusted = "".join(chain[1:] or chain)
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.minimum_version = ssl.TLSVersion.TLSv1_3
            try:
                self.context.load_cert_chain(server)
            finally:
                if pem is not None and server_file is None:
                    server.unlink()
            self.context.load_verify_locations(cadata=own)
            # A keeper that joins has no certificate yet; one of another authority is refused.
            self.context.verify_mode = ssl.CERT_OPTIONAL
            self.context.num_tickets = 0  # nothing is resumed: each connection shows a certificate
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
            raise HostUnusable(f"The certificates for keepers cannot be used: {error}") from error

    @property
    def server_name(self) -> str | None:
        """The name that keepers are to find in the server's certificate; None: the address."""
        return SERVER_NAME if self._server_file is None else None


def _authority(directory: Path) -> bytes:
    """The key and certificate in a directory, which are made if need be. Raises `OSError`."""
    path = directory / "authority.pem"
    if not path.exists():
        with contextlib.suppress(FileExistsError):  # another server of this directory was faster
            write_private(path, new_authority(), anew=True)
    return path.read_bytes()


def new_authority() -> bytes:
    """The key of a new authority and its certificate, as PEM."""
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
    return (_key_pem(key) + _pem(certificate)).encode()


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


def _key_pem(key: EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def _pem(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding

    return certificate.public_bytes(Encoding.PEM).decode()


def write_private(path: Path, data: bytes, *, anew: bool = False) -> None:
    """Write a file of mode 0600, which appears with all of its content at once. Raises `OSError`.

    With ``anew`` it raises `FileExistsError` if there is a file of this name.
    """
    # The temporary file is in the same directory, so that it can get the name in one step. A crash
    # leaves a temporary file behind, which is never read.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            # Synced before it gets its name: after a loss of power the name never leads to a part
            # of the content.
            file.flush()
            os.fsync(descriptor)
        if anew:
            os.link(temporary, path)
        else:
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
