"""Errors of a server that is one of several replicas."""

from __future__ import annotations

from typing import Final

from ..errors import KernelkeepError

__all__ = [
    "KernelElsewhereError",
    "RegistryUnavailable",
    "ReplicaUnreachable",
    "RequestUnderway",
]

RETRY_SECONDS: Final = 1


class ReplicaUnreachable(KernelkeepError):
    """The replica that has the kernel cannot be reached; soon another has it.

    If the request may have been done all the same (``begun``), the message says so.
    """

    status = 503
    code = "replica_unreachable"

    def __init__(self, *, begun: bool = False) -> None:
        text = "The replica that has the kernel cannot be reached"
        if begun:
            text = "The replica that had the kernel has lost it; the request may have been done"
        super().__init__(text)
        self.retry_after = RETRY_SECONDS


class RegistryUnavailable(KernelkeepError):
    """The registry that the replicas share is away: no kernel can be started just now."""

    status = 503
    code = "registry_unavailable"

    def __init__(self) -> None:
        super().__init__("The registry of the replicas cannot be reached")
        self.retry_after = RETRY_SECONDS


class RequestUnderway(KernelkeepError):
    """Another replica has been at the same for a long time; ask again, with the same key."""

    status = 503
    code = "request_underway"

    def __init__(self) -> None:
        super().__init__("Another replica is still at this request")
        self.retry_after = RETRY_SECONDS


class KernelElsewhereError(KernelkeepError):
    """There is a kernel of this id already, with another replica."""

    status = 409
    code = "kernel_elsewhere"

    def __init__(self, kernel_id: str) -> None:
        super().__init__(f"Kernel {kernel_id} is there already, with another replica")
