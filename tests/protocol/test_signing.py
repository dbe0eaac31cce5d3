"""Signatures: as the Jupyter messaging protocol computes them, and nothing else taken for one."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.protocol.signing import Signer

PARTS = [b'{"msg_id":"1"}', b"{}", b"{}", b'{"code":"1"}']


def test_the_signature_is_the_hmac_of_the_four_parts_in_hexadecimal() -> None:
    # Computed with: printf '%s' '{}{}{}{}' | openssl dgst -sha256 -hmac secret
    signature = Signer(b"secret").sign([b"{}", b"{}", b"{}", b"{}"])

    assert signature == b"34982f0bfec60e7b933ffde06c1ecab0fba073717a95ab943d1dd06f82c2d5e4"


@given(st.binary(min_size=1), st.lists(st.binary(), min_size=4, max_size=4))
def test_what_is_signed_verifies(key: bytes, parts: list[bytes]) -> None:
    signer = Signer(key)

    signature = signer.sign(parts)

    assert signature == hmac.new(key, b"".join(parts), "sha256").hexdigest().encode()
    assert signer.verify(signature, b"".join(parts))
    assert signer.verify(memoryview(signature), memoryview(b"".join(parts)))


@pytest.mark.parametrize("name", ["sha256", "sha512", "sha3_256", "md5"])
@pytest.mark.parametrize("size", [1, 64, 65, 200])
def test_a_key_may_be_longer_than_a_block_of_the_hash(name: str, size: int) -> None:
    key = b"k" * size

    signature = Signer(key, f"hmac-{name}").sign(PARTS)

    assert signature == hmac.new(key, b"".join(PARTS), name).hexdigest().encode()


@pytest.mark.parametrize(
    "signature",
    [
        *(b"", b"0", b"\xff\xfe", b"0" * 64, b"0" * 1_000_000, "ä".encode() * 32),
        Signer(b"another key").sign(PARTS),
        Signer(b"key", "hmac-sha1").sign(PARTS),
        Signer(b"key").sign(PARTS).upper(),
        Signer(b"key").sign(PARTS)[:-1],
        Signer(b"key").sign(PARTS) + b"0",
        Signer(b"key").sign(reversed(PARTS)),
    ],
)
def test_no_other_signature_verifies(signature: bytes) -> None:
    assert not Signer(b"key").verify(signature, b"".join(PARTS))


def test_changed_parts_do_not_verify() -> None:
    signer = Signer(b"key")
    signed = b"".join(PARTS)
    signature = signer.sign(PARTS)

    for index in range(len(signed)):
        changed = signed[:index] + bytes([signed[index] ^ 1]) + signed[index + 1 :]
        assert not signer.verify(signature, changed)


def test_without_a_key_nothing_is_signed_and_all_is_taken() -> None:
    signer = Signer(b"")

    assert signer.sign(PARTS) == b""
    assert signer.verify(b"", b"".join(PARTS))
    assert signer.verify(b"what", b"")


@pytest.mark.parametrize("name", sorted(hashlib.algorithms_guaranteed))
def test_a_hash_is_either_refused_at_once_or_works(name: str) -> None:
    if name.startswith("shake_"):
        with pytest.raises(ValueError, match=f"hmac-{name}"):
            Signer(b"key", f"hmac-{name}")
    else:
        signer = Signer(b"key", f"hmac-{name}")
        assert signer.verify(signer.sign(PARTS), b"".join(PARTS))


@pytest.mark.parametrize(
    "scheme", ["", "hmac", "hmac-", "hmac-none", "sha256", "HMAC-sha256", "hmac_sha256", "-sha256"]
)
def test_a_scheme_that_nobody_knows_is_refused(scheme: str) -> None:
    with pytest.raises(ValueError, match="unknown signature scheme"):
        Signer(b"key", scheme)
