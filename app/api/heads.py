"""The headers of a request, as the ASGI server has them: bytes, with names in lower case.

Every request is looked at before it is routed, so a look costs no more than one in a dictionary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

__all__ = ["Head", "first"]

Header = tuple[bytes, bytes]

_HOST: Final = b"host"


class Head:
    """The headers by name; of several with one name, the first counts."""

    __slots__ = ("_first", "hosts")

    def __init__(self, headers: Sequence[Header]) -> None:
        self._first = dict(reversed(headers))
        repeats = len(self._first) < len(headers)
        self.hosts = sum(name == _HOST for name, _ in headers) if repeats else _HOST in self._first
        """How many Host headers there are."""

    def raw(self, name: bytes) -> bytes:
        """The value of a header as it came; empty if there is none."""
        return self._first.get(name, b"")

    def get(self, name: bytes) -> str | None:
        """The text of a header; None if there is none."""
        value = self._first.get(name)
        return None if value is None else value.decode("latin-1")


def first(headers: Iterable[Header], name: bytes) -> bytes:
    """The value of the first header of this name; empty if there is none."""
    for each, value in headers:
        if each == name:
            return value
    return b""
