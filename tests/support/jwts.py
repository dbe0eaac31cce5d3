"""JWTs and the keys of an issuer, right and wrong, as tests need them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

from joserfc import jwk, jws

__all__ = ["AUDIENCE", "Signer", "claims_of", "compact", "jwks", "rsa_key", "segment", "signed"]

AUDIENCE: Final = "kernelkeep"

Signer = jwk.RSAKey | jwk.ECKey | jwk.OKPKey


def rsa_key(kid: str = "first") -> jwk.RSAKey:
    """A private key; the same for the same id."""
    return _rsa_key(kid)


@cache
def _rsa_key(kid: str) -> jwk.RSAKey:
    return jwk.RSAKey.generate_key(2048, {"kid": kid})


def jwks(keys: Iterable[Signer]) -> dict[str, Any]:
    """The public halves of keys, as an issuer shows them."""
    return {"keys": [dict(key.as_dict(private=False)) for key in keys]}


def claims_of(issuer: str, owner: str = "anna", **more: Any) -> dict[str, Any]:
    """The claims of a token that is good for an hour; None as a value takes a claim away."""
    now = int(time.time())
    claims = {"iss": issuer, "aud": AUDIENCE, "sub": owner, "iat": now, "exp": now + 3600, **more}
    return {name: value for name, value in claims.items() if value is not None}


def signed(
    claims: Any,
    key: Signer | jwk.OctKey,
    *,
    algorithm: str = "RS256",
    header: Mapping[str, Any] | None = None,
) -> str:
    """A signed token; ``header`` is added to the usual one, and None as a value takes away."""
    usual = {"alg": algorithm, "kid": key.kid, "typ": "JWT", **(header or {})}
    protected = {name: value for name, value in usual.items() if value is not None}
    payload = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
    registry = jws.JWSRegistry(algorithms=[algorithm], strict_check_header=False)
    registry.max_payload_length = registry.max_header_length = 2**24
    return jws.serialize_compact(protected, payload, key, registry=registry)


def segment(value: Any) -> str:
    """A part of a compact token."""
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def compact(header: Any, claims: Any, signature: bytes = b"") -> str:
    """A token of these parts, however wrong they are."""
    return ".".join((segment(header), segment(claims), segment(signature)))
