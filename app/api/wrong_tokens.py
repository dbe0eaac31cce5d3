"""Counts the wrong tokens of each address, so that a client that guesses is told to wait."""

from __future__ import annotations

import math
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import Final

__all__ = ["WrongTokens"]

ALLOWED: Final = 20
"""Wrong tokens that one address may send within `WINDOW_SECONDS` before it is told to wait."""

WINDOW_SECONDS: Final = 60.0

MAX_ADDRESSES: Final = 4096
"""How many addresses are remembered; the one whose last wrong token is oldest is forgotten."""


class WrongTokens:
    """Counts wrong tokens by address; times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        # For each address the beginning of its window, and its wrong tokens since; the address
        # with the latest wrong token is the last.
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def shown(self, address: str, now: float) -> int:
        """Count a wrong token; returns the seconds that the client must wait, or 0 for none."""
        # The address is taken out and put back, so that it is the last: of too many addresses the
        # one is forgotten that has been quiet for longest, and not one that is guessing.
        key = _network(address)
        began, count = self._windows.pop(key, (now, 0))
        if now - began >= WINDOW_SECONDS:
            began, count = now, 0
        self._windows[key] = (began, count + 1)
        if len(self._windows) > MAX_ADDRESSES:
            self._windows.popitem(last=False)
        if count < ALLOWED:
            return 0
        return max(1, math.ceil(began + WINDOW_SECONDS - now))


def _network(address: str) -> str:
    """The address to count by: for IPv6 its /64, since a customer has at least that [RFC 6177]."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return ""  # a Unix socket, or a text that a proxy made up
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(IPv6Address(int(found) >> 64 << 64))
