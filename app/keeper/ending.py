"""How a keeper ends the kernels that nobody wants any more: it asks, signals and kills them."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Final

from ..protocol.compose import make_parts
from ..protocol.messages import ClientMessage
from .hearings import Hearings
from .kept_kernels import KeptKernels

__all__ = ["Ending"]

TERMINATE_SECONDS: Final = 5.0
"""Seconds between two steps: the shutdown requests, SIGTERM, SIGKILL, and the end of the keeper,
which comes even if a process is left."""


class Ending:
    """Ends all kernels of a keeper.

    It calls ``end`` when none runs any more, or `TERMINATE_SECONDS` after SIGKILL.

    No step is ever taken back, and none asks whether kernels are left: `look` calls ``end`` when
    the last one has ended. Make it inside a running event loop.
    """

    def __init__(self, kernels: KeptKernels, hearings: Hearings, end: Callable[[], None]) -> None:
        self.began = False
        self._kernels = kernels
        self._hearings = hearings
        self._end = end
        self._loop = asyncio.get_running_loop()

    def begin(self) -> None:
        """Ask all kernels to shut down; those that go on are signalled later. To be called once."""
        self.began = True
        asked = 0
        for kernel in self._kernels:
            hearing = self._hearings.get(kernel.kernel_id)
            if hearing is not None and hearing.connected and kernel.running:
                header, parts = make_parts("shutdown_request", {"restart": False}, hearing.session)
                hearing.request(ClientMessage("control", header, parts), hearing.session)
                asked += 1
        self._loop.call_later(TERMINATE_SECONDS if asked else 0.0, self._terminate)
        self.look()

    def _terminate(self) -> None:
        self._kernels.signal_all(signal.SIGTERM)
        self._loop.call_later(TERMINATE_SECONDS, self._kill)

    def _kill(self) -> None:
        self._kernels.signal_all(signal.SIGKILL)
        # A process may be unable to die, as its disk hangs. The keeper does not wait longer for it.
        self._loop.call_later(TERMINATE_SECONDS, self._end)

    def look(self) -> None:
        """End the keeper if no kernel runs any more. To be called when a kernel has ended."""
        # Forgotten kernels do not count: they have got SIGKILL, and no server waits for their ends.
        if self.began and not self._kernels.any_running:
            self._end()
