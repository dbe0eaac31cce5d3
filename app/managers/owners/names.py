"""Names of owners and groups: which texts are names, and when two are the same."""

from __future__ import annotations

import unicodedata
from typing import Final

__all__ = ["MAX_NAME_BYTES", "InvalidName", "confusable", "owner_name"]

MAX_NAME_BYTES: Final = 255
"""How long a name may be, in bytes of UTF-8: as long as a file's name on Linux."""

_FORBIDDEN: Final = frozenset("/\\")

_INVISIBLE: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
"""Categories of characters that a reader of a log or a terminal does not see as they are."""


class InvalidName(ValueError):
    """The text is no name of an owner or a group; the exception's text says why, without it."""


def owner_name(text: str) -> str:
    """The name that a text means, in Unicode's normal form C.

    Two texts that Unicode calls canonically equivalent are the same name. Case makes a difference:
    an identity provider may have a user "Anna" beside a user "anna". A name can be the name of a
    directory. Raises `InvalidName`.
    """
    name = unicodedata.normalize("NFC", text)
    if not name or name != name.strip():
        raise InvalidName("a name is not empty, and has no space around it")
    if any(char in _FORBIDDEN or unicodedata.category(char) in _INVISIBLE for char in name):
        raise InvalidName("a name has no slash, backslash, control or invisible character")
    if name in (".", ".."):
        raise InvalidName("a name is not the name of this directory or the one above")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidName(f"a name has at most {MAX_NAME_BYTES} bytes")
    return name


def confusable(name: str) -> str:
    """The same text for names that a person would take for the same: they differ in case or form.

    Where names are given by hand, a new one that is confusable with another is refused.
    """
    folded = unicodedata.normalize("NFKC", name).casefold()
    return unicodedata.normalize("NFKC", folded)
