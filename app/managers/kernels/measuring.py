"""What a caller's kernels use of the machine."""

from __future__ import annotations

from ..owners.ownership import may_share
from .finding import Finding
from .kernel import Kernel
from .listing import Listing
from .usage import KernelUsage, Series, UsageSampler

__all__ = ["Measuring"]


class Measuring:
    """The usage of the kernels that a caller finds."""

    def __init__(self, sampler: UsageSampler, finding: Finding, listing: Listing) -> None:
        self._sampler = sampler
        self._finding = finding
        self._listing = listing

    async def usage(self, kernel_id: str, *, history: bool = False) -> KernelUsage:
        """What a kernel uses of the machine (`UsageSampler.usage`). Raises `KernelNotFound`, too.

        What its owner's other kernels use is not for those with whom it is shared.
        """
        kernel, principal = self._finding.get(kernel_id), self._finding.principal
        usage = await self._sampler.usage(kernel, history=history)
        if not (principal.scopes.everything or may_share(principal, "read", kernel.ownership)):
            usage.owner_memory = None
        return usage

    def samples(self, kernel: Kernel) -> Series | None:
        """The samples that there are of what a kernel uses."""
        return self._sampler.last(kernel.id)

    async def sample(self, most: int) -> None:
        """Have new samples of those kernels whose samples are the oldest, ``most`` at a time."""
        reached = [
            kernel
            for kernel in self._listing
            if kernel.state.running and not kernel.state.unreachable
        ]
        await self._sampler.refresh_oldest(reached, most)
