"""The phases of a kernel: which event leads from one to the next, and what follows a process's end.

Everything here is pure. A `Course` is the place of one kernel in the table `TRANSITIONS`; what its
clients see is the coarser `KernelState.lifecycle`.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Final

__all__ = ["TRANSITIONS", "Course", "EndAsked", "Event", "Next", "Phase", "WrongTurn", "after_end"]


class Phase(Enum):
    """Where a kernel is between its creation and the moment when nothing of it is left."""

    NEW = auto()
    """Its start waits for a turn: nothing has been launched."""
    STARTING = auto()
    """A process is being launched, or has not come up yet."""
    RUNNING = auto()
    """The process has come up."""
    RESTARTING = auto()
    """The process has ended, and another one is to be launched."""
    REPLACING = auto()
    """A restart is stopping the process."""
    STOPPING = auto()
    """The process is being stopped for good."""
    STRANDED = auto()
    """The process is of no use, and could not be ended."""
    LEFT = auto()
    """An earlier server has left the process, and this one could not reach it yet."""
    DEAD = auto()
    """The kernel has no process, and gets another one only if a restart is asked for."""
    GONE = auto()
    """The kernel is not this server's any more: it was removed, or left for the next server."""


class Event(Enum):
    """What happens to a kernel."""

    BEGUN = auto()
    """The turn of its start has come."""
    FOUND = auto()
    """The kernel is in the registry: an earlier server has left it."""
    REACHED = auto()
    """The process that was left is reached, or is known to have ended."""
    WAS_UP = auto()
    """The process that was reached had come up under an earlier server; it has not answered yet."""
    LAUNCHING = auto()
    """A process is about to be launched."""
    LAUNCHED = auto()
    """The process is launched, and heard."""
    CAME_UP = auto()
    """The process is ready."""
    RESTARTS = auto()
    """The process has ended, and another one follows: by the policy, or as a client asked."""
    RESTART = auto()
    """A restart begins to stop the process."""
    STOP = auto()
    """A stop begins to stop the process."""
    STOP_FAILED = auto()
    """The process could not be stopped."""
    STRANDED = auto()
    """The process is of no use, and could not be ended."""
    BURIED = auto()
    """There is no process, and none follows."""
    RETIRED = auto()
    """The kernel is removed."""
    HANDED_OVER = auto()
    """The kernel is left for the next server."""
    SHUTDOWN_ASKED = auto()
    """The process is to end for good: a client has sent a ``shutdown_request``."""
    RESTART_ASKED = auto()
    """The process is to end for a restart: a client has sent such a ``shutdown_request``."""


class EndAsked(Enum):
    """What the present process was asked to end for; if it was not asked, its end is a death."""

    NOTHING = auto()
    SHUTDOWN = auto()
    RESTART = auto()


class Next(Enum):
    """What follows the end of a process."""

    RETIRE = auto()
    """The kernel is removed, as it was asked for."""
    RESTART_AS_ASKED = auto()
    """Another process is launched, as it was asked for."""
    RESTART = auto()
    """The kernel has died, and another process is launched after a pause."""
    BURY = auto()
    """The kernel is dead."""


class WrongTurn(Exception):
    """An event that cannot come in this phase: a bug of the server's."""


BACK: Final = None
"""In the table: the phase before the stop that has failed."""

_ENDS: Final = {
    Event.STRANDED: Phase.STRANDED,
    Event.BURIED: Phase.DEAD,
    Event.RETIRED: Phase.GONE,
    Event.HANDED_OVER: Phase.GONE,
}
_IS_STOPPED: Final = {Event.RESTART: Phase.REPLACING, Event.STOP: Phase.STOPPING}

TRANSITIONS: Final[Mapping[Phase, Mapping[Event, Phase | None]]] = {
    Phase.NEW: {
        Event.BEGUN: Phase.STARTING,
        Event.FOUND: Phase.LEFT,
        Event.STOP: Phase.STOPPING,
        Event.BURIED: Phase.DEAD,
        Event.RETIRED: Phase.GONE,
        Event.HANDED_OVER: Phase.GONE,
    },
    Phase.STARTING: {
        Event.LAUNCHING: Phase.STARTING,
        Event.LAUNCHED: Phase.STARTING,
        Event.CAME_UP: Phase.RUNNING,
        Event.WAS_UP: Phase.STARTING,
        Event.RESTARTS: Phase.RESTARTING,
        **_IS_STOPPED,
        **_ENDS,
    },
    Phase.RUNNING: {Event.RESTARTS: Phase.RESTARTING, **_IS_STOPPED, **_ENDS},
    Phase.RESTARTING: {
        # Again, when this server finishes the restart that an earlier one was about to do.
        Event.RESTARTS: Phase.RESTARTING,
        Event.LAUNCHING: Phase.STARTING,
        **_IS_STOPPED,
        **_ENDS,
    },
    Phase.REPLACING: {
        Event.LAUNCHING: Phase.STARTING,
        Event.STOP_FAILED: BACK,
        # A restart that was cancelled between the end of one process and the launch of the next.
        **_IS_STOPPED,
        Event.HANDED_OVER: Phase.GONE,
        # No end but these: a restart that fails has begun to launch by then (`Phase.STARTING`).
    },
    Phase.STOPPING: {
        Event.RETIRED: Phase.GONE,
        Event.STOP_FAILED: BACK,
    },
    Phase.STRANDED: {**_IS_STOPPED, **_ENDS},
    Phase.LEFT: {Event.REACHED: Phase.STARTING, Event.HANDED_OVER: Phase.GONE},
    Phase.DEAD: {
        Event.RESTART: Phase.REPLACING,
        Event.BURIED: Phase.DEAD,
        Event.RETIRED: Phase.GONE,
        Event.HANDED_OVER: Phase.GONE,
    },
    # A kernel's life is cancelled when the kernel is left, and may still cause one event before it
    # ends. No event brings the kernel back.
    Phase.GONE: dict.fromkeys(Event, Phase.GONE),
}
"""The phase that follows, by the present one and by the event.

What a client asks of the process (`Event.SHUTDOWN_ASKED`, `Event.RESTART_ASKED`) may come at any
time and changes no phase; it counts when the process ends (`after_end`).
"""

_ASKS: Final = (Event.SHUTDOWN_ASKED, Event.RESTART_ASKED)


class Course:
    """The phase of one kernel, and what else decides what follows the end of its process."""

    def __init__(self) -> None:
        self.phase = Phase.NEW
        self.asked = EndAsked.NOTHING
        """What was asked of the present process."""
        self.has_been_ready = False
        """Whether any process of the kernel has come up: one that never does is not restarted."""
        self._before = Phase.NEW  # the phase to go back to if the stop under way fails

    def on(self, event: Event) -> None:
        """Take note of an event. Raises `WrongTurn`, and nothing has changed then."""
        phase = self.phase
        if event not in _ASKS:
            if event not in TRANSITIONS[phase]:
                raise WrongTurn(f"{event.name} cannot come to a kernel that is {phase.name}")
            self.phase = TRANSITIONS[phase][event] or self._before
        # Not if the stop follows a restart that was cut short (`Phase.REPLACING`): should the stop
        # fail, the kernel goes back to the phase in which the restart began.
        if event in _IS_STOPPED and phase is not Phase.REPLACING:
            self._before = phase
        self.asked = _asked_after(self.asked, phase, event)
        if event in (Event.CAME_UP, Event.WAS_UP):
            self.has_been_ready = True


def _asked_after(asked: EndAsked, phase: Phase, event: Event) -> EndAsked:
    """What is asked of the present process after an event that came in ``phase``."""
    match event:
        case Event.LAUNCHED:  # another process
            return EndAsked.NOTHING
        case Event.SHUTDOWN_ASKED:
            return EndAsked.SHUTDOWN
        case Event.RESTART_ASKED:
            return EndAsked.RESTART
        case Event.STOP_FAILED:  # the process may still end: that end was asked for
            if phase is Phase.REPLACING and asked is EndAsked.NOTHING:
                return EndAsked.RESTART
            return asked if phase is Phase.REPLACING else EndAsked.SHUTDOWN
    return asked


def after_end(course: Course, *, autorestart: bool, within_limit: bool) -> Next:
    """What follows the end of a kernel's process.

    ``autorestart`` is the option, and ``within_limit`` whether the kernel has not died too often in
    a row (`RestartPolicy`).
    """
    # First: a process that was asked to end for good may have been stranded before it did.
    if course.asked is EndAsked.SHUTDOWN:
        return Next.RETIRE
    if course.phase is Phase.STRANDED:
        return Next.BURY
    if course.asked is EndAsked.RESTART:
        return Next.RESTART_AS_ASKED
    if course.has_been_ready and autorestart and within_limit:
        return Next.RESTART
    return Next.BURY
