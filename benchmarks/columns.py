"""The columns of the table: kernelkeep as it comes and otherwise, and what it is set beside."""

from __future__ import annotations

from typing import Final

__all__ = [
    "BARE",
    "BEFORE",
    "FORWARDER",
    "NO_FORK",
    "OURS",
    "SETTINGS",
    "STOP",
    "WARM",
    "is_ours",
    "is_peer",
]

OURS: Final = "kernelkeep"
"""With every option as it comes, but for the limits on output."""

BEFORE: Final = "kernelkeep, before"
"""Another commit, with every option as it came there."""

BARE: Final = "bare sockets"
FORWARDER: Final = "bare forwarder"
"""The name of the server that does nothing but forward."""

STOP: Final = "kernelkeep, stop"
NO_FORK: Final = "kernelkeep, no fork"
WARM: Final = "kernelkeep, warm"

SETTINGS: Final = {
    STOP: ("--on-shutdown", "stop"),
    NO_FORK: ("--fork-kernels", "none"),
    WARM: ("--warm-kernels", "ipykernel=2"),
}
"""Columns of kernelkeep with other settings, and the options that make them."""


def is_ours(name: str) -> bool:
    """Whether a column is kernelkeep's, whatever its settings and its commit."""
    return name.split(",")[0] == OURS


def is_peer(name: str) -> bool:
    """Whether a column is that of another kernel server."""
    return not is_ours(name) and name not in (BARE, FORWARDER)
