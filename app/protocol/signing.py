"""Message signatures: an HMAC over the four JSON parts, as hexadecimal digits.

The key and the scheme (``hmac-sha256`` wherever seen) come from the kernel's connection file; an
empty key means no signatures [Jupyter messaging protocol, "The wire protocol"].
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable

from app.protocol.messages import Buffer

__all__ = ["Signer"]


class Signer:
    """Signs and verifies with one kernel's key.

    Raises `ValueError` for a scheme other than ``hmac-<a hash that hashlib knows>``.
    """

    def __init__(self, key: bytes, scheme: str = "hmac-sha256") -> None:
        prefix, _, self._hash = scheme.partition("-")
        # A digest without a size of its own (shake) makes no HMAC.
        if (
            prefix != "hmac"
            or self._hash not in hashlib.algorithms_available
            or not hashlib.new(self._hash).digest_size
        ):
            raise ValueError(f"unknown signature scheme {scheme!r}")
        # Copied for each message, which is cheaper than to begin with the key each time.
        self._keyed = hmac.new(key, digestmod=self._hash) if key else None

    def sign(self, parts: Iterable[Buffer]) -> bytes:
        """The signature of a message's four JSON parts, given in order; empty without a key."""
        if self._keyed is None:
            return b""
        digest = self._keyed.copy()
        for part in parts:
            digest.update(part)
        return digest.hexdigest().encode()

    def verify(self, signature: Buffer, signed: Buffer) -> bool:
        """Whether ``signature`` is that of ``signed``, the four parts lying behind each other."""
        if self._keyed is None:
            return True
        digest = self._keyed.copy()
        digest.update(signed)
        return hmac.compare_digest(digest.hexdigest().encode(), signature)
