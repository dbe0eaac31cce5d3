"""An issuer's keys: which are used, and when they are fetched."""

from __future__ import annotations

from typing import Any

import pytest
from joserfc import jwk

from app.identity_providers.oidc_keys import (
    FETCH_PAUSE,
    MAX_KEYS,
    RETRY_PAUSE,
    KeyRing,
    UnusableKeys,
    parse_keys,
)
from tests.support.jwts import jwks, rsa_key

ALGORITHMS = {"RS256", "ES256"}
RSA = jwks([rsa_key()])["keys"][0]


def changed(**more: Any) -> dict[str, Any]:
    """The key with other members; None as a value takes a member away."""
    return {name: value for name, value in {**RSA, **more}.items() if value is not None}


@pytest.mark.parametrize(
    "document",
    [
        None,
        [],
        "keys",
        {},
        {"keys": None},
        {"keys": {}},
        {"keys": []},
        {"keys": [None, 5, "key", []]},
        {"keys": [{"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "first"}]},
        {"keys": [changed(kty="oct", k="c2VjcmV0")]},
        {"keys": [changed(kid=None)]},
        {"keys": [changed(kid=5)]},
        {"keys": [changed(kid="")]},
        {"keys": [changed(kid="x" * 256)]},
        {"keys": [changed(use="enc")]},
        {"keys": [changed(key_ops=["encrypt"])]},
        {"keys": [changed(key_ops="verify")]},
        {"keys": [changed(alg="HS256")]},
        {"keys": [changed(alg="RS512")]},
        {"keys": [changed(n="AQAB")]},
        {"keys": [changed(n=RSA["n"] * 10)]},
        {"keys": [changed(n="!" * 400)]},
        {"keys": [changed(n=5)]},
        {"keys": [changed(n=None)]},
        {"keys": [changed(e=None)]},
        {"keys": [changed(kty="EC", crv="P-256")]},
        {"keys": [changed(kty=["RSA"])]},
        {"keys": [dict(rsa_key().as_dict(private=True))]},
        {"keys": [changed(n=RSA["n"][:171])]},
        jwks([jwk.OKPKey.generate_key("Ed25519", {"kid": "other"})]),
        {"keys": [*[changed(use="enc")] * MAX_KEYS, RSA]},
    ],
)
def test_documents_without_a_key_that_could_verify(document: Any) -> None:
    with pytest.raises(UnusableKeys):
        parse_keys(document, ALGORITHMS)


def test_a_key_that_cannot_be_used_does_not_keep_the_others_out() -> None:
    odd = [changed(n="x", kid="odd"), {"kty": "AKP", "kid": "quantum"}, changed(use="enc")]
    keys = parse_keys(
        {"keys": [*odd, changed(alg="RS256", use="sig", key_ops=["verify"])]}, ALGORITHMS
    )
    assert list(keys) == ["first"]


def test_keys_grow_too_old() -> None:
    ring = KeyRing(100)
    keys = parse_keys(jwks([rsa_key()]), ALGORITHMS)
    assert ring.find("first", 0) == []
    assert not ring.usable(0)
    assert ring.pause(0) == 0
    ring.fetched(keys, 0)
    assert ring.find("first", 99.9) == keys["first"]
    assert ring.find("second", 0) == []
    assert not ring.ageing(49.9)
    assert ring.ageing(50)
    assert ring.find("first", 100) == []


def test_fetches_have_a_pause_between_them() -> None:
    ring = KeyRing(100)
    ring.failed(0)
    assert ring.pause(0) == RETRY_PAUSE
    assert ring.pause(RETRY_PAUSE) == 0
    ring.fetched(parse_keys(jwks([rsa_key()]), ALGORITHMS), 10)
    assert ring.pause(10) == FETCH_PAUSE
    ring.failed(60)  # the keys are good still
    assert ring.find("first", 60) != []
    assert not ring.ageing(60)
    assert ring.ageing(60 + RETRY_PAUSE)


def test_keys_that_are_used_for_a_short_time_are_fetched_before_they_are_too_old() -> None:
    ring = KeyRing(FETCH_PAUSE / 2)
    ring.fetched(parse_keys(jwks([rsa_key()]), ALGORITHMS), 0)
    assert not ring.ageing(FETCH_PAUSE / 4 - 0.1)
    assert ring.ageing(FETCH_PAUSE / 4)
    assert ring.usable(FETCH_PAUSE / 4)
    assert ring.pause(FETCH_PAUSE / 2) == 0


def test_which_keys_are_still_the_issuer_s() -> None:
    ring = KeyRing(100)
    old = parse_keys(jwks([rsa_key()]), ALGORITHMS)["first"][0]
    ring.fetched(parse_keys(jwks([rsa_key(), rsa_key("second")]), ALGORITHMS), 0)
    assert ring.has(old)
    ring.fetched(parse_keys(jwks([rsa_key("second")]), ALGORITHMS), 1)
    assert not ring.has(old)
    # Another key with the id of the old one.
    replaced = jwk.RSAKey.generate_key(2048, {"kid": "first"})
    ring.fetched(parse_keys(jwks([replaced]), ALGORITHMS), 2)
    assert not ring.has(old)
