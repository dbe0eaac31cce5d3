"""Certificates: who vouches for whom, until when, and what happens to clocks that differ."""

from __future__ import annotations

import datetime
import ssl
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from app.managers.processes.hosts import authority as module
from app.managers.processes.hosts.authority import (
    SERVER_NAME,
    Authority,
    Credential,
    Signer,
    credential_of,
    new_authority,
    replica_of,
)
from app.managers.processes.hosts.errors import EngineNotInstalled, HostUnusable

KEEPER = Credential("k-1.x_y", 12)


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str) -> dict[str, Any] | None:
    """Both ends of TLS, without a network; the certificate that the server has verified."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(to_server, to_client, server_side=True)
    here = client.wrap_bio(to_client, to_server, server_hostname=name)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for end in (here, there):
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                pass
    assert here.version() == "TLSv1.3"
    return there.getpeercert()


def client_of(authority: Authority, tmp_path: Path, pem: str = "") -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=authority.trusted)
    if pem:
        (tmp_path / "client.pem").write_text(pem)
        context.load_cert_chain(tmp_path / "client.pem")
    return context


def test_a_keeper_knows_the_service_and_the_service_the_keeper(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "a", ["kernels.example.org", "192.0.2.1", "2001:db8::1"])
    pem = authority.issue(KEEPER, 60)
    for name in (SERVER_NAME, "kernels.example.org", "192.0.2.1", "2001:db8::1"):
        client = client_of(authority, tmp_path, pem)
        assert credential_of(handshake(authority.context, client, name)) == KEEPER
    assert credential_of(handshake(authority.context, client_of(authority, tmp_path), name)) is None
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for 'elsewhere"):
        handshake(authority.context, client_of(authority, tmp_path), "elsewhere.example.org")


def test_its_files_are_private_and_the_same_for_the_next_server(tmp_path: Path) -> None:
    first = Authority(tmp_path / "a")
    for path in (tmp_path / "a").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    second = Authority(tmp_path / "a")
    assert first.trusted == second.trusted
    client = client_of(second, tmp_path, first.issue(KEEPER, 60))
    assert credential_of(handshake(second.context, client, SERVER_NAME)) == KEEPER


def test_a_certificate_of_another_authority_is_refused_by_either_end(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path / "a"), Authority(tmp_path / "b")
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(theirs.context, client_of(ours, tmp_path), SERVER_NAME)
    client = client_of(ours, tmp_path, theirs.issue(KEEPER, 60))
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        handshake(ours.context, client, SERVER_NAME)


def test_a_keepers_certificate_does_not_make_a_service(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "a")
    (tmp_path / "keeper.pem").write_text(authority.issue(Credential("k", 1), 60))
    pretender = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    pretender.load_cert_chain(tmp_path / "keeper.pem")
    client = client_of(authority, tmp_path)
    client.check_hostname = False
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(pretender, client, SERVER_NAME)


def test_the_services_certificate_names_no_keeper(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "a")
    client = client_of(authority, tmp_path, (tmp_path / "a" / "server.pem").read_text())
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        handshake(authority.context, client, SERVER_NAME)


def test_a_replica_is_no_keeper_and_not_what_keepers_dial(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "a")
    replica = client_of(authority, tmp_path, authority.issue_replica("one"))
    shown = handshake(authority.context, replica, SERVER_NAME)
    assert (replica_of(shown), credential_of(shown)) == ("one", None)
    keeper = handshake(
        authority.context, client_of(authority, tmp_path, authority.issue(KEEPER, 60)), SERVER_NAME
    )
    assert (replica_of(keeper), replica_of(None)) == (None, None)
    pretender = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    (tmp_path / "replica.pem").write_text(authority.issue_replica("one"))
    pretender.load_cert_chain(tmp_path / "replica.pem")
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        handshake(pretender, client_of(authority, tmp_path), SERVER_NAME)


def test_servers_that_share_an_authority_know_each_others_keepers(tmp_path: Path) -> None:
    pem = new_authority()
    first, second = Authority(tmp_path / "a", pem=pem), Authority(tmp_path / "b", pem=pem)
    assert first.trusted == second.trusted == Signer(pem).own
    assert not (tmp_path / "a" / "authority.pem").exists()
    client = client_of(second, tmp_path, first.issue(KEEPER, 60))
    assert credential_of(handshake(second.context, client, SERVER_NAME)) == KEEPER


def test_older_tls_is_refused(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "a")
    client = client_of(authority, tmp_path)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        handshake(authority.context, client, SERVER_NAME)


@pytest.mark.parametrize("ahead", [3600, -3600])
def test_clocks_may_be_an_hour_apart(
    tmp_path: Path, ahead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr(module, "_now", lambda: now + datetime.timedelta(seconds=ahead))
    authority = Authority(tmp_path / "a")  # by the clock of the service
    handshake(authority.context, client_of(authority, tmp_path), SERVER_NAME)  # by the keeper's
    monkeypatch.undo()
    # What the service has signed it looks at by its own clock, to which the keeper's means nothing.
    client = client_of(authority, tmp_path, authority.issue(KEEPER, 60))
    assert credential_of(handshake(authority.context, client, SERVER_NAME)) == KEEPER


def test_a_certificate_ends(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "a")
    client = client_of(authority, tmp_path, authority.issue(KEEPER, -60))
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        handshake(authority.context, client, SERVER_NAME)
    endless = x509.load_pem_x509_certificate(authority.issue(KEEPER, 1e30).encode())
    assert endless.not_valid_after_utc > datetime.datetime.now(datetime.UTC)


def test_the_operators_certificate_is_shown_and_who_vouches_for_it_trusted(tmp_path: Path) -> None:
    """Keepers look for the address that they dial in it, and get certificates of our authority."""
    operators = Authority(tmp_path / "operators", ["kernels.example.org"])
    file = tmp_path / "operator.pem"
    file.write_text((tmp_path / "operators" / "server.pem").read_text() + operators.trusted)
    authority = Authority(tmp_path / "a", (), file)
    assert authority.trusted == operators.trusted
    assert authority.server_name is None
    client = client_of(authority, tmp_path, authority.issue(KEEPER, 60))
    assert credential_of(handshake(authority.context, client, "kernels.example.org")) == KEEPER


def test_one_certificate_that_nobody_vouches_for_is_trusted_itself(tmp_path: Path) -> None:
    Authority(tmp_path / "other", ["kernels.example.org"])
    file = tmp_path / "other" / "server.pem"
    authority = Authority(tmp_path / "a", (), file)
    client = client_of(authority, tmp_path)
    client.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as a keeper does
    handshake(authority.context, client, "kernels.example.org")


@pytest.mark.parametrize("text", ["", "no key", "-----BEGIN CERTIFICATE-----\nAA\n"])
def test_files_that_cannot_be_used_are_told(tmp_path: Path, text: str) -> None:
    (tmp_path / "operator.pem").write_text(text)
    with pytest.raises(HostUnusable, match="certificates for keepers cannot be used"):
        Authority(tmp_path / "a", (), tmp_path / "operator.pem")
    (tmp_path / "a" / "authority.pem").write_text(text)
    with pytest.raises(HostUnusable, match="certificates for keepers cannot be used"):
        Authority(tmp_path / "a")


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    (tmp_path / "authority.pem").write_bytes(key)
    with pytest.raises(HostUnusable, match="not what a server has written"):
        Authority(tmp_path)


def test_two_servers_that_begin_at_once_have_one_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []
    make = module.new_authority

    def made_by_both() -> bytes:
        monkeypatch.setattr(module, "new_authority", make)
        found.append(Authority(tmp_path).trusted)
        return make()

    monkeypatch.setattr(module, "new_authority", made_by_both)
    assert Authority(tmp_path).trusted == found[0]


def test_without_the_package_it_is_said_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(EngineNotInstalled, match="kernelkeep\\[agents\\]"):
        Authority(tmp_path)


@pytest.mark.parametrize(
    "certificate",
    [
        None,
        {},
        {"subjectAltName": (("DNS", "kernelkeep:keeper:k:1"),)},
        {"subjectAltName": (("URI", "kernelkeep:keeper:k"),)},
        {"subjectAltName": (("URI", "kernelkeep:keeper:../k:1"),)},
        {"subjectAltName": (("URI", "kernelkeep:keeper:k:1\n"),)},
    ],
)
def test_other_certificates_name_no_keeper(certificate: dict[str, Any] | None) -> None:
    assert credential_of(certificate) is None
