"""Where a replica listens for those of other hosts, and with which certificate."""

from __future__ import annotations

import socket
import stat
import sys
from pathlib import Path

import pytest

from app.managers.handover.store import UnusableRegistry
from app.managers.processes.hosts import authority as module
from app.managers.processes.hosts.authority import Credential, Signer, new_authority
from app.managers.replicas import wire as wires
from app.managers.replicas.wire import Wire
from app.settings import Settings


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
