"""Taking over a kernel whose process an earlier server has left.

`TakeOver.reach` finds out what has become of the process, and puts the kernel's log and executions
back. What follows from that, the kernel decides.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol

from ...keeper.hearings import Heard
from ...keeper.processes import UNKNOWN_EXIT
from ...keeper.sockets import ConnectionInfo
from ...log_formats import about
from ..errors import KeeperUnavailable
from ..handover.adoption import Gone
from ..handover.handover import HandedOver
from ..handover.store import KernelRecord
from ..state import Lifecycle
from ..telemetry.reports import KernelReports
from .launches import Launches
from .services import KernelServices

__all__ = ["REACH_SECONDS", "Fate", "Found", "TakeOver"]

logger = logging.getLogger(__name__)

REACH_SECONDS: Final = (1.0, 30.0)
"""The first and the longest pause before a left kernel that cannot be reached is tried again."""


class Fate(Enum):
    """What has become of a process that was left."""

    STARTING = auto()
    """It runs, and has not come up yet."""
    READY = auto()
    """It runs, and is heard."""
    SILENT = auto()
    """It had come up, and has said nothing since this server was started."""
    UNUSABLE = auto()
    """It runs, but what the kernel has said and done could not be read."""
    REPLACED = auto()
    """It was ended for a restart, or had ended before one: another process is to follow."""
    DEAD = auto()
    """It has ended."""


class Found(NamedTuple):
    """What `TakeOver.reach` has found."""

    fate: Fate
    why: str = ""
    """Why the process has ended, if it has."""
    again: bool = False
    """Whether another keeper hears the kernel than before: requests may be lost."""


class LeftKernel(HandedOver, Protocol):
    """What `TakeOver` needs of a kernel."""

    @property
    def reports(self) -> KernelReports:
        """The reports of the kernel."""


class TakeOver:
    """Owns, for one kernel, the process that an earlier server has left.

    ``on_reached`` is called when the process is reached, or is known to have ended.
    """

    def __init__(
        self,
        kernel: LeftKernel,
        launches: Launches,
        services: KernelServices,
        *,
        on_reached: Callable[[], None],
    ) -> None:
        self.record: KernelRecord | None = None
        """The record that the earlier server has written."""
        self._on_reached = on_reached
        self._kernel = kernel
        self._launches = launches
        self._services = services
        self._logger = about(logger, kernel_id=kernel.id)

    async def reach(self) -> Found:
        """Own the process that was left, or find that it has ended.

        Raises `KernelUnreachable`, and nothing has changed then.
        """
        launches, kernel, record = self._launches, self._kernel, self.record
        assert record is not None
        try:
            heard = await launches.find_again(record)
        except Gone as gone:
            self._on_reached()
            return await self._clean_up(record, str(gone), gone.code)
        self._on_reached()
        if await self.recover(record, launches.info, heard) is None:
            return Found(Fate.UNUSABLE)
        # The registry is up to `CHECKPOINT_SECONDS` behind: the kernel may have come up since.
        ran = any(execution.started_at is not None for execution in kernel.traffic.tracker)
        has_come_up = ran or record.execution_state in ("busy", "idle")
        if has_come_up:
            launches.remember_transport()
        if heard.opened:
            kernel.state.reason = record.reason
            return Found(Fate.READY, again=heard.again)
        if has_come_up or record.execution_state == Lifecycle.UNKNOWN:
            return Found(Fate.SILENT)
        return Found(Fate.STARTING)

    async def _clean_up(self, record: KernelRecord, why: str, code: int | None) -> Found:
        """The process has ended meanwhile, with the exit code ``code`` if that is known."""
        unfinished = record.execution_state == Lifecycle.RESTARTING
        await self.recover(record, {}, another=unfinished)
        if not unfinished:
            self._kernel.reports.died(UNKNOWN_EXIT if code is None else code)
        await self._launches.end(why, restart=False)
        with contextlib.suppress(KeeperUnavailable):  # a keeper may have it under its id alone
            await self._services.keepers.end(self._kernel.id)
        return Found(Fate.REPLACED if unfinished else Fate.DEAD, why)

    async def recover(
        self,
        record: KernelRecord,
        info: ConnectionInfo,
        heard: Heard | None = None,
        *,
        another: bool = False,
    ) -> Heard | None:
        """Read the log and the executions that were left; returns how the kernel is heard.

        Returns None, and logs the exception, if that fails. Requests that were not sent yet are
        submitted: to this process, or to ``another`` that follows it.
        """
        kernel = self._kernel
        try:
            heard = await self._services.handover.recover(kernel, record, info, heard)
        except Exception:
            self._logger.exception("kernel %s: what it has said and done is not known", kernel.id)
            kernel.traffic.read_from_end()
            return None
        if another:
            kernel.traffic.expect_process()
        kernel.executions.send_again()
        return heard
