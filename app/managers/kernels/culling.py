"""Culling: stopping kernels that nobody has used for a while.

Idle time runs on a monotonic clock, from the end of the last execution (`Activity.idle_since`).
Neither listing, pings and reconnects, nor a jump of the wall clock, nor a suspended machine
changes it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ...log_formats import about
from ..errors import KernelNotFound
from ..state import Lifecycle
from .kernel import Kernel

__all__ = [
    "Candidate",
    "Culler",
    "CullingPolicy",
    "cull_cause",
    "cull_reason",
    "timeout_of_spec",
]

logger = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """The facts about one kernel, at one moment, that the policy decides by."""

    dead: bool
    busy: bool
    connections: int
    idle_seconds: float
    spec_timeout: float | None
    """The kernelspec's own ``metadata.cull_idle_timeout``, in seconds; 0 means never."""


class CullingPolicy(NamedTuple):
    """When a kernel is culled; the options of Jupyter's kernel manager, times in seconds."""

    idle_timeout: float
    """0 switches culling off altogether."""
    connected: bool
    """Whether kernels that have connections are culled too."""
    busy: bool
    """Whether kernels that run something are culled too."""

    def culls(self, kernel: Candidate) -> bool:
        """Whether this kernel is culled. A dead kernel always is, if culling is on."""
        if self.idle_timeout <= 0:
            return False
        if kernel.dead:
            return True
        timeout = self.idle_timeout if kernel.spec_timeout is None else kernel.spec_timeout
        return (
            timeout > 0
            and kernel.idle_seconds > timeout
            and (self.busy or not kernel.busy)
            and (self.connected or kernel.connections == 0)
        )


def timeout_of_spec(name: str, metadata: Mapping[str, Any]) -> float | None:
    """A kernelspec's own timeout in seconds; None when it has none, or one that is no number."""
    value = metadata.get("cull_idle_timeout")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
        logger.warning("kernelspec %s: its cull_idle_timeout is no number of seconds", name)
        return None
    return float(value)


def cull_cause(kernel: Kernel) -> str:
    """The cause of a cull, as metrics name it: ``dead``, ``busy``, ``connected`` or ``idle``."""
    if kernel.state.lifecycle is Lifecycle.DEAD:
        return "dead"
    if kernel.state.at_work:
        return "busy"
    return "connected" if len(kernel.traffic.clients) else "idle"


def cull_reason(idle_seconds: float, limit: str) -> str:
    """Why a kernel is stopped: unused for so many seconds, or its owner's ``limit`` says so."""
    if limit:
        return f"Its time is up, by its owner's limit {limit}"
    return f"Culled after {idle_seconds:.0f} s without use"


class Culler:
    """Looks at every kernel each ``interval`` seconds, and stops those that the policy names.

    ``stop`` stops one kernel. Its arguments are the kernel's id, the seconds since the kernel was
    last used, and the name of the limit by which it is stopped, if there is one. It may raise
    `KernelNotFound`.
    """

    def __init__(
        self,
        kernels: Iterable[Kernel],
        stop: Callable[[str, float, str], Awaitable[None]],
        policy: CullingPolicy,
        interval: float,
    ) -> None:
        self._kernels = kernels
        self._stop = stop
        self._policy = policy
        self._interval = interval
        # A kernelspec is read once per kernel: a warning about it is not logged at every look.
        self._timeouts: WeakKeyDictionary[Kernel, float | None] = WeakKeyDictionary()
        # The stops are tasks of their own. The end of the server cancels `run`, and a stop that is
        # half done then must go on: the kernel has been asked to shut down already.
        self._culls: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Cull until cancelled; returns at once when culling is off."""
        policy = self._policy
        if policy.idle_timeout <= 0:
            return
        logger.info(
            "Culling kernels with idle durations > %g seconds at %g second intervals%s%s",
            policy.idle_timeout,
            self._interval,
            ", even if they are busy" if policy.busy else "",
            ", even if they have connections" if policy.connected else "",
        )
        while True:
            await asyncio.sleep(self._interval)
            self.cull_kernels()

    def cull_kernels(self) -> None:
        """Look at every kernel once. The stops run side by side: a stuck one delays no other."""
        now = time.monotonic()
        for kernel in self._kernels:
            try:
                self.cull_kernel_if_idle(kernel, now)
            except Exception:  # one kernel must not keep all others from being culled
                about(logger, kernel_id=kernel.id).exception(
                    "kernel %s could not be looked at", kernel.id
                )

    def cull_kernel_if_idle(self, kernel: Kernel, now: float) -> None:
        """Begin to stop a kernel if the policy says so."""
        traffic, state = kernel.traffic, kernel.state
        if state.lifecycle not in (Lifecycle.RUNNING, Lifecycle.DEAD):
            return  # the kernel has just been started, restarted or stopped
        if state.unreachable:
            return  # the kernel may be at work, and could not be stopped
        if kernel not in self._timeouts:
            self._timeouts[kernel] = timeout_of_spec(kernel.name, kernel.spec.metadata or {})
        # Facts of one moment: nothing is awaited up to the decision. The stop begins a turn of the
        # loop later, when a client may have begun a restart (`MultiKernelManager.cull_kernel`).
        idle_seconds = now - traffic.activity.idle_since
        candidate = Candidate(
            dead=state.lifecycle is Lifecycle.DEAD,
            busy=state.at_work,
            connections=len(traffic.clients),
            idle_seconds=idle_seconds,
            spec_timeout=self._timeouts[kernel],
        )
        if not self._policy.culls(candidate):
            return
        about(logger, kernel_id=kernel.id).warning(
            "Culling '%s' kernel '%s' (%s) with %d connections due to %.0f seconds of inactivity",
            state.word,
            kernel.name,
            kernel.id,
            len(traffic.clients),
            idle_seconds,
        )
        self.cull(kernel, idle_seconds)

    def cull(self, kernel: Kernel, idle_seconds: float, limit: str = "") -> None:
        """Begin to stop a kernel, unless that is under way."""
        # A stop may take longer than the pause between two looks.
        if kernel.id in self._culls:
            return
        cull = asyncio.get_running_loop().create_task(
            self._cull(kernel, idle_seconds, limit), name=f"cull {kernel.id}"
        )
        self._culls[kernel.id] = cull
        cull.add_done_callback(lambda _: self._culls.pop(kernel.id))

    async def _cull(self, kernel: Kernel, idle_seconds: float, limit: str) -> None:
        try:
            await self._stop(kernel.id, idle_seconds, limit)
        except KernelNotFound:
            pass  # another stop of the kernel was quicker
        except Exception:
            about(logger, kernel_id=kernel.id).exception("kernel %s could not be culled", kernel.id)
