"""The tokens of the list: their form, the part that is shown of them, and the hash that is stored.

A token is 256 random bits. So its SHA-256 is stored as it is: the slow hashes with a salt that
passwords need make guessing dear, and nobody can guess among 2**256 tokens. One hash and one look
into a dictionary tell whose a token is, and how long they take tells nothing of use.
"""

from __future__ import annotations

import re
import secrets
from hashlib import sha256
from typing import Final

__all__ = ["LENGTH", "MARK", "SHOWN_LENGTH", "digest", "is_token", "new_token", "shown"]

MARK: Final = "kk_"
"""What every token begins with, so that a scanner of secrets finds it: ``kk_[0-9a-f]{64}``."""

LENGTH: Final = len(MARK) + 64
SHOWN_LENGTH: Final = len(MARK) + 8

_TOKEN: Final = re.compile(f"{MARK}[0-9a-f]{{64}}", re.ASCII)


def new_token() -> str:
    """A new token, from 256 random bits."""
    return MARK + secrets.token_hex(32)


def is_token(text: str) -> bool:
    """Whether a text looks like a token of the list."""
    return len(text) == LENGTH and _TOKEN.fullmatch(text) is not None


def shown(token: str) -> str:
    """The token's prefix, by which people, logs and commands name it. 224 bits stay secret."""
    return token[:SHOWN_LENGTH]


def digest(token: str) -> bytes:
    """The SHA-256 of a token, which is stored in its place."""
    return sha256(token.encode()).digest()
