"""Where a replica listens for those of other hosts, and with which certificate."""

from __future__ import annotations

import datetime
import socket
import ssl
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.hashes import SHA256

from app.managers.handover.store import UnusableRegistry
from app.managers.processes.hosts import authority as module
from app.managers.processes.hosts.authority import Credential, Signer, new_authority, takes
from app.managers.replicas import wire as wires
from app.managers.replicas.wire import Wire
from app.settings import Settings
from tests.managers.processes.hosts.test_authority import handshake


def wire_of(directory: Path, authority: bytes = b"", **options: str) -> Wire:
    given = {"replica_listen": "127.0.0.1:0", **options}
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    url = "--registry-url=postgresql://user@127.0.0.1/name"
    token = "--token=a token of some length"
    settings = Settings(
        _cli_parse_args=[f"--state-dir={directory}", url, token, "--on-shutdown=keep", *flags]
    )
    return Wire(settings, "one", directory, authority)


@pytest.fixture(scope="module")
def authority() -> bytes:
    return new_authority()


def refusal(directory: Path, authority: bytes = b"", **options: str) -> str:
    with pytest.raises(UnusableRegistry) as refused:
        wire_of(directory, authority, **options)
    (line,) = str(refused.value).splitlines()
    assert "PRIVATE" not in line
    return line


@pytest.mark.parametrize(
    ("listen", "address", "expected"),
    [
        ("127.0.0.1:0", "", "127.0.0.1:{port}"),
        ("[::1]:0", "", "[::1]:{port}"),
        ("0.0.0.0:0", "", "{host}:{port}"),
        ("127.0.0.1:0", "one.example.org", "one.example.org:{port}"),
        ("127.0.0.1:0", "[2001:db8::1]:443", "[2001:db8::1]:443"),
    ],
)
def test_the_others_dial_where_it_listens_unless_they_are_told_otherwise(
    tmp_path: Path, authority: bytes, listen: str, address: str, expected: str
) -> None:
    wire = wire_of(tmp_path, authority, replica_listen=listen, replica_address=address)
    port = wire.listening.getsockname()[1]
    assert wire.dial == expected.format(port=port, host=socket.gethostname())
    wire.close()
    assert [*tmp_path.iterdir()] == []  # no key is left


def test_its_key_is_in_a_private_file_for_a_moment(
    tmp_path: Path, authority: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    modes = []
    write = module.write_private

    def written(path: Path, data: bytes) -> None:
        write(path, data)
        modes.append(stat.S_IMODE(path.stat().st_mode))

    monkeypatch.setattr(wires, "write_private", written)
    wire_of(tmp_path, authority).close()
    assert modes == [0o600, 0o600]


def test_the_operators_certificate_is_for_this_replica_and_vouched_for(tmp_path: Path) -> None:
    signer = Signer(new_authority())
    file = tmp_path / "operators.pem"
    for text, why in (
        (signer.issue_replica("one"), "no certificate follows that vouches for it"),
        (signer.issue_replica("two") + signer.own, "not for the name URI:kernelkeep:replica:one"),
        (signer.issue(Credential("one", 1), 60) + signer.own, "not for the name"),
        (signer.issue_server(["one"]) + signer.own, "not for the name"),
        ("", "not for the name"),
        (signer.own + signer.own, "not for the name"),
        ("-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n", "cannot be used"),
        (signer.issue_replica("one").partition("-----BEGIN C")[1] + "x", "not for the name"),
        (_without_key(signer.issue_replica("one")) + signer.own, "cannot be used"),
    ):
        file.write_text(text)
        assert why in refusal(tmp_path, replica_certificate=str(file))
    file.write_text(signer.issue_replica("one") + signer.own)
    wire_of(tmp_path, replica_certificate=str(file)).close()
    assert [*tmp_path.iterdir()] == [file]


def _without_key(pem: str) -> str:
    return pem[pem.index("-----BEGIN CERTIFICATE") :]


def authority_of(name: str, issuer: Signer | None = None, key: Any = None) -> Signer:
    """An authority of an operator's, which may be one of another's, or have another key."""
    key = ec.generate_private_key(ec.SECP256R1()) if key is None else key
    subject = module._name(name)
    signing, by = (key, subject)
    if issuer is not None:
        signing, by = issuer._key, issuer._certificate.subject
    certificate = (
        module._builder(subject, by, datetime.timedelta(days=1), key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(signing, SHA256())
    )
    return Signer((module._key_pem(key) + module._pem(certificate)).encode())


ROOT, OTHER, NAMESAKE = (authority_of(name) for name in ("root", "other", "root"))
ABOVE = {name: authority_of(name, ROOT) for name in ("first", "second")}
RENEWED = authority_of("root", key=ROOT._key)


def operators(signer: Signer, *trusted: Signer) -> str:
    return signer.issue_replica("one") + "".join(one.own for one in trusted)


@pytest.mark.parametrize(
    ("one", "other", "are_taken"),
    [
        (operators(ROOT, ROOT), operators(ROOT, ROOT), True),
        (operators(ROOT, ROOT), operators(OTHER, OTHER), False),
        (operators(ROOT, ROOT), operators(NAMESAKE, NAMESAKE), False),
        (operators(ROOT, ROOT), operators(RENEWED, RENEWED), True),
        # While they go over to another authority.
        (operators(ROOT, ROOT), operators(ROOT, ROOT, OTHER), True),
        (operators(ROOT, ROOT, OTHER), operators(OTHER, ROOT, OTHER), True),
        (operators(OTHER, OTHER), operators(OTHER, ROOT, OTHER), True),
        (operators(ROOT, ROOT), operators(OTHER, ROOT, OTHER), False),
        (operators(ROOT, OTHER), operators(OTHER, ROOT), True),
        # By an authority between, which those that know its own authority alone do not know.
        (operators(ABOVE["first"], ABOVE["first"], ROOT), operators(ROOT, ROOT), True),
        (
            operators(ABOVE["first"], ABOVE["first"], ROOT),
            operators(ABOVE["second"], ABOVE["second"], ROOT),
            True,
        ),
        (operators(ABOVE["first"], ROOT), operators(ROOT, ROOT), False),
        (
            operators(ABOVE["first"], ABOVE["first"]),
            operators(ABOVE["first"], ABOVE["first"]),
            True,
        ),
    ],
)
def test_replicas_take_each_other_where_tls_does(
    tmp_path: Path, one: str, other: str, are_taken: bool
) -> None:
    wires = []
    for name, text in (("one", one), ("other", other)):
        file = tmp_path / name
        file.write_text(text)
        wires.append(wire_of(tmp_path, replica_certificate=str(file)))
    here, there = wires
    assert "PRIVATE" not in here.certificates
    told = [
        takes(here.certificates, there.certificates),
        takes(there.certificates, here.certificates),
    ]
    assert all(told) is are_taken
    for client, server in ((here, there), (there, here)):
        try:
            handshake(server.server, client.client, "one")
        except ssl.SSLCertVerificationError:
            assert not are_taken
        else:
            assert are_taken
    for wire in wires:
        wire.close()


def test_a_certificate_that_cannot_be_read_or_checked_is_taken() -> None:
    shown = _without_key(operators(ROOT, ROOT))
    assert takes(shown, "-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----\n")
    assert takes("no certificate", shown)
    key = x25519.X25519PrivateKey.generate().public_key()  # which signs nothing
    name = ROOT._certificate.subject
    now = datetime.datetime.now(datetime.UTC)
    exotic = x509.CertificateBuilder(name, name, key, x509.random_serial_number(), now, now).sign(
        ROOT._key, SHA256()
    )
    assert takes(shown, _without_key(operators(OTHER, OTHER)) + module._pem(exotic))


def test_a_certificate_that_is_trusted_itself_is_taken() -> None:
    shown = _without_key(operators(ROOT, ROOT))
    other = _without_key(operators(OTHER, OTHER))
    assert not takes(shown, other)
    assert takes(shown, other + shown.partition(ROOT.own)[0])


def test_an_address_that_is_taken_and_an_authority_of_others_are_refused(
    tmp_path: Path, authority: bytes
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        told = refusal(tmp_path, authority, replica_listen=address)
        assert f"nobody can listen on {address}" in told
    assert "certificate cannot be used" in refusal(tmp_path, b"no key")


def test_without_the_package_it_is_said_what_to_install(
    tmp_path: Path, authority: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    assert "kernelkeep[agents]" in refusal(tmp_path, authority)
