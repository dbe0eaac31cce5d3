"""How often each address has shown a wrong token: who guesses is told to wait."""

from __future__ import annotations

import math
from collections import OrderedDict
from ipaddress import IPv6Address, ip_address
from typing import Final

__all__ = ["WrongTokens"]

ALLOWED: Final = 20
"""Wrong tokens of one address within `WINDOW_SECONDS`."""

WINDOW_SECONDS: Final = 60.0

MAX_ADDRESSES: Final = 4096
"""Addresses that are remembered; beyond, the one that was wrong longest ago is forgotten."""


class WrongTokens:
    """Counts wrong tokens by address; times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        # When an address's window began, and its wrong tokens since; the latest is the last.
        self._windows: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def shown(self, address: str, now: float) -> int:
        """Note a wrong token. Returns the seconds to wait, or 0 while there are few."""
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
    """Whom an address stands for: one customer has at least a /64 of IPv6 [RFC 6177]."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return ""  # a Unix socket, or what a proxy made up
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(IPv6Address(int(found) >> 64 << 64))
