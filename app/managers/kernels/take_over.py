"""Taking over a kernel whose process an earlier server has left.

`TakeOver` finds out what has become of the process, and puts the kernel's log and executions back.
Then the kernel's life begins: with that process, with the next one, or with none.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from enum import Enum, auto
from typing import Final, NamedTuple, Protocol

from ...keeper.hearings import Heard
from ...keeper.processes import UNKNOWN_EXIT
from ...keeper.sockets import ConnectionInfo
from ...log_formats import about
from ..errors import KeeperUnavailable, KernelUnreachable
from ..handover.adoption import Gone
from ..handover.handover import HandedOver
from ..handover.store import KernelRecord
from ..state import Lifecycle
from ..telemetry.reports import KernelReports
from .launches import Launches, not_stopped
from .life import Life
from .phases import Course, Event
from .registration import Registration
from .services import KernelServices

__all__ = ["TakeOver"]

logger = logging.getLogger(__name__)

REACH_SECONDS: Final = (1.0, 30.0)
"""The first and the longest pause before a left kernel that cannot be reached is tried again."""


class Fate(Enum):
    """What has become of a process that was left."""

    STARTING = auto()
    """The process runs, and has not come up yet."""
    READY = auto()
    """The process runs and is heard, and had come up under the earlier server."""
    SILENT = auto()
    """The process had come up, and has said nothing since this server was started."""
    UNUSABLE = auto()
    """The process runs, but the kernel's log or its stored executions could not be read."""
    REPLACED = auto()
    """The process was ended for a restart, or had ended before one: another is to follow."""
    DEAD = auto()
    """The process has ended."""


class Found(NamedTuple):
    """What has become of a process, as far as that is known."""

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

    `begin` and `at_once` are called with the kernel's lock. Between these two calls the kernel's
    life tries to reach the process. The life and `at_once` both call `_take_over`, but never at the
    same time: `at_once` ends the life first.
    """

    def __init__(
        self,
        kernel: LeftKernel,
        launches: Launches,
        course: Course,
        life: Life,
        registration: Registration,
        services: KernelServices,
    ) -> None:
        self.record: KernelRecord | None = None
        """The record that the earlier server has written."""
        self._kernel = kernel
        self._launches = launches
        self._course = course
        self._life = life
        self._registration = registration
        self._services = services
        self._logger = about(logger, kernel_id=kernel.id)

    async def begin(self, record: KernelRecord) -> None:
        """Take the kernel of this record over; a process out of reach is left to its life."""
        self._course.on(Event.FOUND)
        self.record = record
        self._kernel.traffic.activity.last = record.last_activity
        try:
            await self._take_over()
        except KernelUnreachable as error:
            self._reach_later(error.message)

    async def at_once(self) -> None:
        """Reach the process, so that it can be ended. Raises `KernelNotStopped` if that fails."""
        if not self._kernel.is_left:
            return
        await self._life.end()
        # The life may have reached the process before its cancellation came: `_reach` notes that
        # (`Event.REACHED`) before it awaits anything more. The log may not be read to its end then,
        # which does not matter, as the caller is about to end the process.
        if not self._kernel.is_left:
            return
        try:
            await self._take_over()
        except KernelUnreachable as error:
            self._reach_later(error.message)
            raise not_stopped(error.message) from error

    def _reach_later(self, why: str) -> None:
        self._life.doubt(why)
        self._life.begin(self._reach_in_time())

    async def _reach_in_time(self) -> None:
        """Try to reach the process that was left until that succeeds: a part of the kernel's life.

        The process may run: meanwhile it is neither ended nor replaced.
        """
        pause, longest = REACH_SECONDS
        while True:
            await asyncio.sleep(pause)
            try:
                await self._take_over()  # which begins the next part of the kernel's life
            except KernelUnreachable as error:
                self._life.doubt(error.message)
            else:
                return
            pause = min(pause * 2, longest)

    async def _take_over(self) -> None:
        """Own the process that was left, or find that it has ended; then begin the next life.

        Raises `KernelUnreachable`, and nothing has changed then.
        """
        kernel, life = self._kernel, self._life
        found = await self._reach()
        match found.fate:
            case Fate.UNUSABLE:
                await life.give_up("The server could not take the kernel over; see its log")
                return
            case Fate.DEAD:
                await life.bury(found.why)
                return
            case Fate.REPLACED:
                self._course.on(Event.RESTARTS)
                kernel.state.begin(Lifecycle.RESTARTING)
                life.begin(life.relaunch())
                return
            case Fate.READY:
                life.take_for_ready()
                if found.again or kernel.traffic.ends.has_loss:
                    life.settle_loss()
            case Fate.SILENT:
                self._course.on(Event.WAS_UP)
                life.doubt("It has not answered since this server was started")
        # From here on `Kernel.save` stores the record. While the log was read it could not: the
        # kernel was neither left any more nor heard yet.
        await self._registration.catch_up()
        life.begin()

    async def _reach(self) -> Found:
        """Own the process that was left, or find that it has ended.

        Raises `KernelUnreachable`, and nothing has changed then.
        """
        launches, kernel, record = self._launches, self._kernel, self.record
        assert record is not None
        try:
            heard = await launches.find_again(record)
        except Gone as gone:
            self._course.on(Event.REACHED)
            return await self._clean_up(record, str(gone), gone.code)
        self._course.on(Event.REACHED)
        if await self.recover(record, launches.info, heard) is None:
            return Found(Fate.UNUSABLE)
        # The registry is up to `CHECKPOINT_SECONDS` behind: the kernel may have come up since. Were
        # it taken for one that starts, it would be ended after ``kernel_info_timeout``.
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
        """Put a kernel back whose process has ended: ``why``, with its exit ``code`` if known."""
        # If the server before was between two processes, it had ended this one: that is no death.
        unfinished = record.execution_state == Lifecycle.RESTARTING
        await self.recover(record, {}, another=unfinished)
        if not unfinished:
            self._kernel.reports.died(UNKNOWN_EXIT if code is None else code)
        await self._launches.end(why, restart=False)
        with contextlib.suppress(KeeperUnavailable):  # a keeper may know it by the kernel's id only
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
        except Exception:  # a damaged log or registry must not keep the kernel from being stopped
            self._logger.exception("kernel %s: what it has said and done is not known", kernel.id)
            kernel.traffic.read_from_end()
            return None
        # First the hold: requests that the ended process was not sent wait for the next process.
        if another:
            kernel.traffic.expect_process()
        kernel.executions.send_again()
        return heard
