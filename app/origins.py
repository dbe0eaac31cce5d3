"""Hosts and origins, read by one strict grammar. No function here raises, whatever a client sends.

A ``Host`` is a name, an IPv4 address or an IPv6 address in brackets, with or without a port
[RFC 9110, section 7.2]. An ``Origin`` is a scheme and the same [RFC 6454, section 7]. The grammar
has no user, path or query, which two parsers could find in different places of one text.
"""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv6Address, ip_address
from typing import Final, NamedTuple

__all__ = ["Authority", "Origin", "is_loopback", "origin_of", "parse_authority", "parse_origin"]

MAX_LENGTH: Final = 300
"""Characters that are parsed; a name has at most 253 [RFC 1035, section 2.3.4]."""

_LABEL: Final = r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_AUTHORITY: Final = re.compile(
    rf"(?:({_LABEL}(?:\.{_LABEL})*)\.?|\[([0-9A-Fa-f:.]{{2,45}})\])(?::([0-9]{{1,5}}))?"
)
_ORIGIN: Final = re.compile(r"(https?)://(.+)", re.IGNORECASE)
_PORTS: Final = {"http": 80, "https": 443}


class Authority(NamedTuple):
    """A host, in lower case and without brackets, and its port if that is given."""

    host: str
    port: int | None


class Origin(NamedTuple):
    """The parts of an origin that browsers compare, each in its normal form."""

    scheme: str
    host: str
    port: int


@lru_cache(256)
def parse_authority(text: str) -> Authority | None:
    """Parse ``host`` or ``host:port``; None for any other text."""
    match = _AUTHORITY.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        return None
    name, address, digits = match.groups()
    port = int(digits) if digits else None
    if port is not None and port > 65535:
        return None
    if address is None:
        return Authority(name.lower(), port)
    try:
        return Authority(str(IPv6Address(address)), port)
    except ValueError:
        return None


@lru_cache(256)
def parse_origin(text: str) -> Origin | None:
    """Parse an origin, with the scheme's port by default; None for any other text, as "null"."""
    match = _ORIGIN.fullmatch(text) if len(text) <= MAX_LENGTH else None
    if match is None:
        return None
    return origin_of(match[1].lower(), match[2])


def origin_of(scheme: str, authority: str) -> Origin | None:
    """The origin of a page that comes by ``http`` or ``https`` from this Host; None if invalid."""
    found = parse_authority(authority)
    if found is None or scheme not in _PORTS:
        return None
    return Origin(scheme, found.host, _PORTS[scheme] if found.port is None else found.port)


@lru_cache(256)
def is_loopback(name: str) -> bool:
    """Whether a host is a loopback address, written as an IP address."""
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False
