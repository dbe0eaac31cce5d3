"""The keys of an OpenID Connect issuer: which of its JWKS are used, and when they are fetched."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any, Final

from joserfc.jwk import ECKey, OKPKey, RSAKey

__all__ = ["Key", "KeyRing", "UnusableKeys", "parse_keys"]

Key = RSAKey | ECKey | OKPKey

MAX_KEYS: Final = 100
"""How many keys of a JWKS are looked at."""

MAX_MISSING: Final = 1000
"""How many ids of keys are remembered that the issuer does not have."""

MAX_KEY_ID: Final = 255
"""Characters of a key's id; a key with a longer one is not used."""

MIN_RSA_BITS: Final = 2048  # RFC 7518, section 3.3
MAX_RSA_BITS: Final = 16384
"""A longer RSA key is not used: each token would take long to verify."""

FETCH_PAUSE: Final = 10.0
"""Seconds between two fetches, however many tokens name unknown keys. The pause is shorter if keys
would be too old by then."""

RETRY_PAUSE: Final = 2.0
"""Seconds between a fetch that has failed and the next."""


class UnusableKeys(Exception):
    """A JWKS document has no key that could verify a token."""


def key_type(algorithm: str) -> type[RSAKey] | type[ECKey] | type[OKPKey]:
    """The type of key that a signature's algorithm takes."""
    if algorithm.startswith("ES"):
        return ECKey
    return RSAKey if algorithm[:2] in ("RS", "PS") else OKPKey


def parse_keys(document: Any, algorithms: Collection[str]) -> dict[str, list[Key]]:
    """The keys of a JWKS by id, without those that can verify nothing by these algorithms.

    Symmetric keys are never among them. Two keys can have one id. Raises `UnusableKeys` if no key
    is left.
    """
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise UnusableKeys("no JWKS")
    found: dict[str, list[Key]] = {}
    for value in listed[:MAX_KEYS]:
        if isinstance(value, dict) and _is_for_signatures(value, algorithms):
            key = _imported(value, algorithms)
            if key is not None:
                found.setdefault(value["kid"], []).append(key)
    if not found:
        raise UnusableKeys("no key that could verify a token")
    return found


def _is_for_signatures(value: dict[str, Any], algorithms: Collection[str]) -> bool:
    kid, operations = value.get("kid"), value.get("key_ops")
    return (
        isinstance(kid, str)
        and 0 < len(kid) <= MAX_KEY_ID
        and value.get("use", "sig") == "sig"
        and (operations is None or (isinstance(operations, list) and "verify" in operations))
        and ("alg" not in value or value["alg"] in algorithms)
        and "d" not in value  # a private key that is published verifies nothing any more
    )


def _imported(value: dict[str, Any], algorithms: Collection[str]) -> Key | None:
    types = {key_type(algorithm) for algorithm in algorithms}
    wanted = next((kind for kind in types if kind.key_type == value.get("kty")), None)
    if wanted is None or not _has_fitting_length(value):
        return None
    try:
        return wanted.import_key(value)
    except Exception:  # a key can be wrong in any way, and the others are as good as before
        return None


def _has_fitting_length(value: dict[str, Any]) -> bool:
    if value["kty"] != RSAKey.key_type:
        return True
    modulus = value.get("n")
    bits = len(modulus) * 6 if isinstance(modulus, str) else 0  # base64
    return MIN_RSA_BITS <= bits < MAX_RSA_BITS + 8


class KeyRing:
    """The keys as they were fetched last; times are seconds of one monotonic clock.

    Keys are used for ``max_age`` seconds, and fetched again in the second half of that. A token
    whose key is not known is a reason to fetch, but not within `FETCH_PAUSE` of the last time, or
    half of ``max_age`` if that is less: anybody can make up ids of keys.
    """

    def __init__(self, max_age: float) -> None:
        self._max_age = max_age
        self._keys: dict[str, list[Key]] = {}
        self._missing: set[str] = set()
        self._fetched = -math.inf
        self._next_fetch = -math.inf

    def find(self, kid: str, now: float) -> list[Key]:
        """The keys with this id; empty if there is none, or all are too old to be used."""
        return self._keys.get(kid, []) if self.usable(now) else []

    def usable(self, now: float) -> bool:
        """Whether the keys of the last fetch are young enough to be used."""
        return now - self._fetched < self._max_age

    def ageing(self, now: float) -> bool:
        """Whether it is time to fetch the keys again, before they are needed."""
        return now - self._fetched >= self._max_age / 2 and self.pause(now) == 0

    def pause(self, now: float) -> float:
        """Seconds until the keys may be fetched; 0 if they may be now."""
        return max(0.0, self._next_fetch - now)

    def fetched(self, keys: dict[str, list[Key]], now: float) -> None:
        """Note that a fetch has brought these keys, which replace all earlier ones."""
        self._missing = self._keys.keys() - keys.keys()
        self._keys = keys
        self._fetched = now
        # Keys that grow too old within the pause are fetched before they do.
        self._next_fetch = now + min(FETCH_PAUSE, self._max_age / 2)

    def miss(self, kid: str) -> None:
        """Note that a token has named this key, and that the fetch for it came without the key."""
        if len(self._missing) < MAX_MISSING:
            self._missing.add(kid)

    def lacks(self, kid: str) -> bool:
        """Whether the last fetch is known to have come without this key.

        Any other key that is not known may have been made after that fetch.
        """
        return kid in self._missing

    def failed(self, now: float) -> None:
        """Note that a fetch has failed. The earlier keys are used until they are too old."""
        self._next_fetch = now + RETRY_PAUSE

    def has(self, key: Key) -> bool:
        """Whether this key is still one of the issuer's."""
        return any(key == known for known in self._keys.get(key.kid or "", []))
