"""Giving up a kernel whose host is away: somebody says that it is not to be waited for.

Nobody can tell from here whether its process runs. It is ended when the host is back, if it is.
"""

from __future__ import annotations

from typing import Final

from ..processes.keeper.keepers import Keepers
from .departures import BY_REQUEST
from .kernel import Kernel

__all__ = ["stop_or_give_up"]

REASON: Final = "The kernel was given up: its host was not reached"


async def stop_or_give_up(kernel: Kernel, keepers: Keepers, *, now: bool, give_up: bool) -> None:
    """Stop a kernel and forget it; returns when its process is gone, or taken for that.

    It is taken for that if its host is away and it is to be given up. Raises `KernelNotStopped`.
    """
    is_away, why = kernel.state.unreachable or kernel.is_left, BY_REQUEST
    if give_up and is_away and keepers.give_up(kernel.id, REASON):
        kernel.state.on_reach("")
        why = REASON
    # The stop ends the kernel's life before that gets its turn to see a death.
    await kernel.stop(now=now, why=why)
