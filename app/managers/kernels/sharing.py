"""Sharing kernels: their owners, and administrators, say with whom."""

from __future__ import annotations

from ..errors import (
    InvalidShare,
    KernelNotFound,
    NotAuthorized,
    ShareNotFound,
    TooManyShares,
)
from ..owners.names import InvalidName, owner_name
from ..owners.ownership import MAX_SHARES, Grantee, Share, may_share
from .finding import Finding
from .kernel import Kernel
from .multikernel import MultiKernelManager

__all__ = ["Sharing", "no_longer_shared"]


class Sharing:
    """The shares of the kernels that a caller finds."""

    def __init__(self, manager: MultiKernelManager, finding: Finding) -> None:
        self._manager = manager
        self._finding = finding

    def shares(self, kernel_id: str) -> list[Share]:
        """The shares of a kernel. Raises `KernelNotFound`, or `NotAuthorized` for a grantee."""
        return [*self._shared("read", kernel_id).ownership]

    async def share(self, kernel_id: str, share: Share) -> Share:
        """Share a kernel; a grantee that has a share of it gets this one in its place.

        Raises `InvalidShare`, `TooManyShares`, `KernelNotFound` or `NotAuthorized`.
        """
        kernel = self._shared("write", kernel_id)
        owned = kernel.ownership
        share = Share(share.kind, _grantee_name(share.kind, share.name), share.access)
        if share.grantee == ("name", owned.owner):
            raise InvalidShare("name: is the kernel's owner")
        if share.grantee not in owned and owned.count >= MAX_SHARES:
            raise TooManyShares(MAX_SHARES)
        owned.grant(share)
        await self._manager.shares_changed(kernel)
        return share

    async def revoke(self, kernel_id: str, grantee: Grantee) -> Share:
        """Share a kernel no longer with a grantee; returns the share that ends.

        Raises `ShareNotFound`, `InvalidShare`, `KernelNotFound` or `NotAuthorized`.
        """
        kernel = self._shared("write", kernel_id)
        if (share := kernel.ownership.revoke((grantee[0], _grantee_name(*grantee)))) is None:
            raise ShareNotFound
        await self._manager.shares_changed(kernel)
        return share

    def _shared(self, action: str, kernel_id: str) -> Kernel:
        kernel = self._finding.get(kernel_id)
        if not may_share(self._finding.principal, action, kernel.ownership):
            raise NotAuthorized(action, "kernels")
        return kernel


def no_longer_shared(kernel: Kernel) -> KernelNotFound:
    """The error for a caller whose share of a kernel has ended meanwhile."""
    hidden = {"kernel_id": kernel.id, "owner": kernel.ownership.owner}
    return KernelNotFound(kernel.id).hiding(hidden)


def _grantee_name(kind: str, text: str) -> str:
    try:
        return owner_name(text)
    except InvalidName as error:
        raise InvalidShare(f"{kind}: {error}") from None
