"""The state of one kernel: two separate facts, and the one word that REST makes of them.

The *lifecycle* is that of the kernel's process, and the server knows it. The *execution state* is
the one that the kernel last reported. Only requests on the main shell move the execution state:
control traffic, such as a debugger's, and subshells [JEP 91] have busy and idle statuses too.
"""

from __future__ import annotations

import time
from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from ..protocol.messages import UNTRACKED_MESSAGE_TYPES, Header, format_timestamp

__all__ = ["KernelState", "Lifecycle", "Restarts"]

MAX_WORD: Final = 64
"""Characters of a state, and of a subshell's id, that a kernel may report."""

MAX_SUBSHELLS: Final = 256
"""Subshells of a kernel that are known to be busy; what a kernel makes up costs no more."""


class Lifecycle(StrEnum):
    """The part of its life in which a kernel's process is; `phases.Phase` is the finer one."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    DEAD = "dead"
    UNKNOWN = "unknown"
    """The process may run, and does not answer: a server before this one has launched it, or it
    could not be ended."""


class Restarts(msgspec.Struct, frozen=True):
    """How often a kernel that died was restarted, and what is known of the last time."""

    count: Annotated[int, Meta(description="How often.")]
    last: Annotated[str, Meta(description="When it died last, UTC.")]
    reason: Annotated[
        str, Meta(description="Why: how its process ended, and the last that it wrote.")
    ]


class KernelState:
    """The lifecycle and the execution state of one kernel, and the reason if it is dead."""

    def __init__(self, untracked: frozenset[str] = UNTRACKED_MESSAGE_TYPES) -> None:
        self.lifecycle = Lifecycle.STARTING
        self.execution_state = "starting"
        # Why the kernel is dead, or does not come up. The causes of deaths that an automatic
        # restart has followed are in `restarts`.
        self.reason = ""
        self.restarts: Restarts | None = None
        self._unreachable = ""
        self._words = ""
        # Which of the kernel's processes this is, counted from 1; 0 before the first launch.
        self.generation = 0
        # Counts the changes of the kernel's REST model, here and in its traffic: the model is
        # serialised anew when this has moved.
        self.changes = 0
        # When the word that REST tells has last become another one, in seconds since the epoch.
        self.since = time.time()
        self._word = self.word
        # Up to which change the registry knows the kernel's state and last activity.
        self.noted = -1
        self._untracked = untracked
        self._busy_subshells: set[str] = set()

    @property
    def unreachable(self) -> str:
        """Why the kernel's host cannot be reached, so that its state is not known; or empty."""
        return "" if self.lifecycle is Lifecycle.DEAD else self._unreachable

    @property
    def told_reason(self) -> str:
        """The ``reason`` of the REST model: with a host that is away, what its engine says, too."""
        if not self.unreachable:
            return self.reason
        if self._words and self.reason == self._words:
            return f"{self.unreachable}. {self._words}"
        return self.unreachable

    @property
    def word(self) -> str:
        """The ``execution_state`` of the REST model, in Jupyter's vocabulary."""
        if self.unreachable and self.lifecycle in (Lifecycle.STARTING, Lifecycle.RUNNING):
            return str(Lifecycle.UNKNOWN)
        return self.last_word

    @property
    def last_word(self) -> str:
        """As `word`; for a kernel that cannot be reached, the word of when it last could be."""
        match self.lifecycle:
            case Lifecycle.RUNNING:
                return self.execution_state
            case Lifecycle.STOPPING:
                return "terminating"
            case other:
                return str(other)

    @property
    def greeting(self) -> str:
        """The state that a client is told when it connects.

        ``starting`` stands for ``restarting``, at which JupyterLab would connect anew, again and
        again; and for ``unknown``, which is no state of Jupyter's messaging protocol.
        """
        waits = self.lifecycle in (Lifecycle.RESTARTING, Lifecycle.UNKNOWN)
        return "starting" if waits else self.last_word

    @property
    def running(self) -> bool:
        """Whether the kernel takes requests."""
        return self.lifecycle is Lifecycle.RUNNING

    @property
    def coming_up(self) -> bool:
        """Whether the kernel does not take requests yet, and is expected to."""
        return self.lifecycle in (Lifecycle.STARTING, Lifecycle.RESTARTING, Lifecycle.UNKNOWN)

    @property
    def busy(self) -> bool:
        """Whether the kernel runs a request on its main shell."""
        return self.lifecycle is Lifecycle.RUNNING and self.execution_state == "busy"

    @property
    def at_work(self) -> bool:
        """Whether the kernel runs a request on its main shell or on a subshell."""
        if self.lifecycle is not Lifecycle.RUNNING:
            return False
        return self.execution_state == "busy" or bool(self._busy_subshells)

    def is_activity(self, msg_type: str, parent: Header) -> bool:
        """Whether an iopub message counts as activity of the kernel's clients.

        A message without a parent counts, as in Jupyter's kernels service.
        """
        return (
            self.execution_state == "busy"
            or msg_type not in self._untracked
            or parent.msg_type not in self._untracked
        )

    def on_status(self, reported: str, parent: Header) -> None:
        """Take note of the state that a ``status`` reports for the request ``parent``.

        What is no short word is ignored: the state is shown and stored with those of all kernels. A
        reported ``starting`` is ignored, too. The server decides when a kernel is ready, and a
        ready kernel does not go back: the status may be read late, after replies over other
        sockets.
        """
        if parent.msg_type in self._untracked:
            return
        if parent.subshell_id is not None:
            if reported != "busy":
                self._busy_subshells.discard(parent.subshell_id)
            elif len(self._busy_subshells) < MAX_SUBSHELLS and len(parent.subshell_id) <= MAX_WORD:
                self._busy_subshells.add(parent.subshell_id)
            return
        is_word = 0 < len(reported) <= MAX_WORD and reported.isprintable()
        if is_word and reported != "starting":
            self.execution_state = reported
            self._changed()

    def on_ready(self) -> None:
        """Note that the kernel answers: it is running, and idle unless it has reported a state."""
        self.lifecycle = Lifecycle.RUNNING
        self.reason = ""
        if self.execution_state == "starting":
            self.execution_state = "idle"
        self._changed()

    def on_reach(self, why: str) -> None:
        """Note that the kernel's host cannot be reached, for the reason ``why``; empty: it can."""
        if self._unreachable != why:
            self._unreachable = why
            self._changed()

    def on_words(self, words: str) -> None:
        """Note the engine's words about the kernel's job: why it waits, or when it will end.

        They become the kernel's reason, unless there is another one.
        """
        # The engine's words may come late, when the job that they are about has ended. They replace
        # only earlier words of the engine, and no reason that the server has set since.
        if self.reason == self._words:
            self.reason = words
            self.changes += 1
        self._words = words

    def on_launch(self) -> None:
        """Forget the state that the process before has reported: a new one was launched."""
        # Nothing that the process before has reported is read behind this: its messages were all
        # read when it ended (`Traffic.disconnect`).
        self.execution_state = "starting"
        self._changed()
        self._busy_subshells.clear()

    def on_restart(self, reason: str) -> None:
        """Begin an automatic restart: the kernel has died, and ``reason`` tells why."""
        count = self.restarts.count + 1 if self.restarts is not None else 1
        self.restarts = Restarts(count, format_timestamp(time.time()), reason)
        self.begin(Lifecycle.RESTARTING, reason)

    def begin(self, lifecycle: Lifecycle, reason: str | None = None) -> None:
        """Enter another part of the process's life, with a new ``reason`` if one is given."""
        self.lifecycle = lifecycle
        self._changed()
        if reason is not None:
            self.reason = reason

    def _changed(self) -> None:
        # The model is built anew when a client next asks for it, and not here: a busy kernel
        # changes hundreds of times a second.
        self.changes += 1
        if self.word != self._word:
            self._word, self.since = self.word, time.time()
