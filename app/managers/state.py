"""What a kernel is doing: two facts kept apart, and the one word that REST makes of them.

The *lifecycle* is the process's (the server knows it); the *execution state* is what the kernel
last reported. Only work on the main shell channel moves the execution state: control traffic, such
as a debugger's, and subshells [JEP 91] report busy and idle of their own.
"""

from __future__ import annotations

import time
from enum import StrEnum

import msgspec

from ..protocol.messages import UNTRACKED_MESSAGE_TYPES, Header, format_timestamp

__all__ = ["KernelState", "Lifecycle", "Restarts"]


class Lifecycle(StrEnum):
    """Where a kernel's process is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """It may run: it was left by another server, or could not be ended, and does not answer."""


class Restarts(msgspec.Struct, frozen=True):
    """How often a kernel that died got a new process by itself, when the last time, and why."""

    count: int
    last: str
    reason: str


class KernelState:
    """The lifecycle and execution state of one kernel, and why it is dead if it is."""

    def __init__(self, untracked: frozenset[str] = UNTRACKED_MESSAGE_TYPES) -> None:
        self.lifecycle = Lifecycle.STARTING
        self.execution_state = "starting"
        self.reason = ""  # of a death that is not over: of one that is, `restarts` tells
        self.restarts: Restarts | None = None
        # Which of the kernel's processes this is, from 1; 0 before the first is launched.
        self.generation = 0
        # Counts what changes in the kernel's model, here and in its traffic.
        self.changes = 0
        self._untracked = untracked
        self._busy_subshells: set[str] = set()

    @property
    def word(self) -> str:
        """The ``execution_state`` of the REST model, in Jupyter's vocabulary."""
        match self.lifecycle:
            case Lifecycle.RUNNING:
                return self.execution_state
            case Lifecycle.STOPPING:
                return "terminating"
            case other:
                return str(other)

    @property
    def greeting(self) -> str:
        """What a client that connects is told.

        Not ``restarting``: at that word JupyterLab connects anew, and would go on doing so.
        ``unknown`` is no state of Jupyter's messages.
        """
        waits = self.lifecycle in (Lifecycle.RESTARTING, Lifecycle.UNKNOWN)
        return "starting" if waits else self.word

    @property
    def running(self) -> bool:
        """Whether the kernel takes requests."""
        return self.lifecycle is Lifecycle.RUNNING

    @property
    def coming_up(self) -> bool:
        """Whether the kernel does not take requests, and is about to."""
        return self.lifecycle in (Lifecycle.STARTING, Lifecycle.RESTARTING, Lifecycle.UNKNOWN)

    @property
    def busy(self) -> bool:
        """Whether the kernel runs something on its main shell."""
        return self.lifecycle is Lifecycle.RUNNING and self.execution_state == "busy"

    @property
    def at_work(self) -> bool:
        """Whether the kernel runs something, on its main shell or on a subshell."""
        if self.lifecycle is not Lifecycle.RUNNING:
            return False
        return self.execution_state == "busy" or bool(self._busy_subshells)

    def is_activity(self, msg_type: str, parent: Header) -> bool:
        """Whether an iopub message shows that somebody works with the kernel.

        A message without a parent counts, as in Jupyter's kernels service.
        """
        return (
            self.execution_state == "busy"
            or msg_type not in self._untracked
            or parent.msg_type not in self._untracked
        )

    def on_status(self, reported: str, parent: Header) -> None:
        """Take note of a ``status`` message's state, if it is the main shell's.

        ``starting`` is for the server to decide: a kernel that is ready does not go back.
        """
        if parent.msg_type in self._untracked:
            return
        if parent.subshell_id is not None:
            if reported == "busy":
                self._busy_subshells.add(parent.subshell_id)
            else:
                self._busy_subshells.discard(parent.subshell_id)
            return
        if reported and reported != "starting":
            self.execution_state = reported
            self.changes += 1

    def on_ready(self) -> None:
        """The kernel answers: running, and idle unless it has reported otherwise meanwhile."""
        self.lifecycle = Lifecycle.RUNNING
        self.reason = ""
        self.changes += 1
        if self.execution_state == "starting":
            self.execution_state = "idle"

    def on_launch(self) -> None:
        """A new process: what the one before it reported last does not count."""
        self.execution_state = "starting"
        self.changes += 1
        self._busy_subshells.clear()

    def on_restart(self, reason: str) -> None:
        """The kernel has died of ``reason``, and gets a new process by itself."""
        count = self.restarts.count + 1 if self.restarts is not None else 1
        self.restarts = Restarts(count, format_timestamp(time.time()), reason)
        self.begin(Lifecycle.RESTARTING, reason)

    def begin(self, lifecycle: Lifecycle, reason: str | None = None) -> None:
        """Enter another part of life."""
        self.lifecycle = lifecycle
        self.changes += 1
        if reason is not None:
            self.reason = reason
