"""Message signatures: an HMAC over the four JSON parts, as hexadecimal digits.

The key and the scheme (``hmac-sha256`` wherever seen) come from the kernel's connection file; an
empty key means no signatures [Jupyter messaging protocol, "The wire protocol"].
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from hmac import compare_digest
from typing import TYPE_CHECKING

from .messages import Buffer

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

__all__ = ["Signer"]


class Signer:
    """Signs and verifies with one kernel's key.

    Raises `ValueError` for a scheme other than ``hmac-<a hash that hashlib knows>``.
    """

    def __init__(self, key: bytes, scheme: str = "hmac-sha256") -> None:
        prefix, _, self._hash = scheme.partition("-")
        # A hash whose digest has no size of its own (shake) cannot make an HMAC.
        if (
            prefix != "hmac"
            or self._hash not in hashlib.algorithms_available
            or not hashlib.new(self._hash).digest_size
        ):
            raise ValueError(f"unknown signature scheme {scheme!r}")
        self._key = key
        # The two hashes of an HMAC, fed with the key [RFC 2104, section 4]. To copy them for each
        # message takes two thirds of the time that a copied `hmac.HMAC` takes.
        self._inner, self._outer = _keyed(key, self._hash)

    def sign(self, parts: Iterable[Buffer]) -> bytes:
        """The signature of a message's four JSON parts, given in order; empty without a key."""
        if not self._key:
            return b""
        inner = self._inner.copy()
        for part in parts:
            inner.update(part)
        return self._finish(inner)

    def verify(self, signature: Buffer, *signed: Buffer) -> bool:
        """Whether ``signature`` is that of ``signed``, the four parts in order, joined or not."""
        if not self._key:
            return True
        inner = self._inner.copy()
        for part in signed:
            inner.update(part)
        # Compared in constant time: otherwise the time would tell how much of a guess is right.
        return compare_digest(self._finish(inner), signature)

    def _finish(self, inner: Hash) -> bytes:
        outer = self._outer.copy()
        outer.update(inner.digest())
        return outer.hexdigest().encode()


def _keyed(key: bytes, name: str) -> tuple[Hash, Hash]:
    inner, outer = hashlib.new(name), hashlib.new(name)
    if len(key) > inner.block_size:
        key = hashlib.new(name, key).digest()
    key = key.ljust(inner.block_size, b"\0")
    inner.update(bytes(byte ^ 0x36 for byte in key))
    outer.update(bytes(byte ^ 0x5C for byte in key))
    return inner, outer
