"""The limits and the usage of a kernel's processes, if the keeper has launched them."""

from __future__ import annotations

from typing import Any

from ...keeper.limits import NO_LIMITS, ProcessLimits
from ..errors import KernelStartFailed
from ..processes.forking.provisioner import KernelManager
from ..processes.keeper.kept import ProcessUsage
from ..processes.keeper.provisioner import KeeperProvisioner
from ..processes.launch_errors import described
from ..processes.process import bounded

__all__ = ["impose_limits", "limits_of", "say_limits", "usage_of"]


def say_limits(manager: KernelManager | None, limits: ProcessLimits) -> bool:
    """Set the limits of the next process that is launched or adopted; return if they differ."""
    provisioner = None if manager is None else manager.provisioner
    if not isinstance(provisioner, KeeperProvisioner) or provisioner.process_limits == limits:
        return False
    provisioner.process_limits = limits
    return True


async def impose_limits(manager: KernelManager, limits: ProcessLimits) -> None:
    """Apply limits to the process that runs. Raises `KernelStartFailed` if that fails."""
    if not say_limits(manager, limits):
        return
    assert isinstance(manager.provisioner, KeeperProvisioner)
    try:
        await bounded(manager.provisioner.impose())
    except Exception as error:
        raise KernelStartFailed(f"The kernel's limits cannot be set: {described(error)}") from error


def limits_of(provisioner: Any) -> ProcessLimits:
    """The limits of a provisioner's process."""
    if isinstance(provisioner, KeeperProvisioner):
        return provisioner.process_limits
    return NO_LIMITS


async def usage_of(provisioner: Any) -> ProcessUsage | None:
    """The usage of a provisioner's process; None if it cannot be measured.

    Raises `KeeperUnavailable`.
    """
    return await provisioner.usage() if isinstance(provisioner, KeeperProvisioner) else None
