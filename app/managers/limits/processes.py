"""The limits on processes and logs that the keeper has to enforce on an owner's kernels."""

from __future__ import annotations

from ...keeper.limits import NO_LIMITS, ProcessLimits, owner_key
from ..owners.ownership import Ownership
from .shares import Shares

__all__ = ["log_share", "process_limits"]


def process_limits(shares: Shares, ownership: Ownership) -> ProcessLimits:
    """The limits that the keeper has to enforce on a kernel of this owner."""
    limits = shares.limits(ownership)
    found = ProcessLimits(
        owner=owner_key(ownership.owner),
        memory=limits.memory,
        cpu=limits.cpu,
        processes=limits.processes,
        open_files=limits.open_files,
    )
    return found if found.limited else NO_LIMITS


def log_share(shares: Shares, ownership: Ownership) -> tuple[str, int] | None:
    """The owner's key, and how many bytes of messages its kernels have together; None for any."""
    limit = shares.limits(ownership).log_bytes
    return None if limit is None else (owner_key(ownership.owner), limit)
