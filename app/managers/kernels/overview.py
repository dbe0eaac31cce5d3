"""All kernels of one caller at a glance: what each does and takes, once or as it changes.

Nothing is stored here. A stream looks at the kernels once a second, and sends an event about each
kernel that has changed since its last event. So the cost of a stream depends on neither output nor
executions.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from typing import Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta

from ...protocol.messages import format_timestamp
from ..errors import KernelStartFailed, ServerStopping
from ..executions.contents import content_of, text_of
from ..executions.execution import Execution
from ..handover.elsewhere import KernelElsewhere
from ..log.entries import Gap, Position
from ..log.message_log import MessageLog
from ..processes.engines.caller_options import settled
from ..processes.engines.kinds import engine_of
from ..processes.hosts.options import options_of
from .departures import Departure
from .kernel import Kernel
from .usage import Series

__all__ = [
    "Codes",
    "GoneEvent",
    "KernelEvent",
    "OfOwner",
    "Overview",
    "RunningModel",
    "Sampled",
    "Told",
    "Watched",
    "WholeEvent",
    "host_of",
]

LOOK_SECONDS: Final = 1.0
"""How often a stream looks at the kernels."""

SAMPLED_AT_ONCE: Final = 30
"""How many kernels a stream has sampled at each look: a sample costs the keeper about as much as a
message, and there may be thousands of kernels."""

MAX_CODE: Final = 200
"""Characters of code that are told."""

CODES_READ: Final = 50
"""How many kernels' code is read from their logs at each look."""

MAX_ENDS: Final = 1000
"""How many ends of kernels of other replicas a stream remembers, so that it tells each once: a
replica that is followed anew sends again the ends that it knows."""

_HEAD_MESSAGES: Final = 32
_HEAD_BYTES: Final = 2**20
"""How far an execution's code is looked for in the log: the kernel publishes the code first."""


class Watched(Protocol):
    """The kernels that a caller may read; a `Listing` is one."""

    def __iter__(self) -> Iterator[Kernel]:
        """The kernels that there are now."""

    def others(self) -> list[KernelElsewhere]:
        """The kernels of other replicas."""

    async def refresh(self) -> None:
        """Look for kernels that others have started."""

    def check_running(self) -> None:
        """Raise `ServerStopping` if the server is shutting down."""

    @property
    def departed(self) -> int:
        """The number of the latest departure, of any owner's kernel."""

    def departures(self, since: int) -> list[Departure]:
        """The departures after a number, of kernels that the caller could read."""


class Sampled(Protocol):
    """What the kernels use of the machine, as far as it is sampled; a `Measuring` is one."""

    def samples(self, kernel: Kernel) -> Series | None:
        """The samples of a kernel's usage, if there are any."""

    async def sample(self, most: int) -> None:
        """Have new samples of those kernels whose samples are the oldest."""


class OfOwner:
    """The watched kernels of one owner."""

    def __init__(self, watched: Watched, owner: str) -> None:
        self._watched = watched
        self._owner = owner
        self.refresh = watched.refresh
        self.check_running = watched.check_running

    def __iter__(self) -> Iterator[Kernel]:
        """As `Watched.__iter__`."""
        return (one for one in self._watched if one.ownership.owner == self._owner)

    def others(self) -> list[KernelElsewhere]:
        """As `Watched.others`."""
        return [one for one in self._watched.others() if one.ownership.owner == self._owner]

    @property
    def departed(self) -> int:
        """As `Watched.departed`."""
        return self._watched.departed

    def departures(self, since: int) -> list[Departure]:
        """As `Watched.departures`."""
        found = self._watched.departures(since)
        return [one for one in found if one.ownership.owner == self._owner]


class RunningModel(msgspec.Struct):
    """The execution that a kernel runs."""

    execution_id: str
    since: Annotated[str, Meta(description="When the kernel began with the execution, UTC.")]
    code: Annotated[
        str | None,
        Meta(
            description="The code's first line that says something, at most 200 characters; null "
            "for silent code, and as long as the kernel has not published the code."
        ),
    ]


class OverviewEvent(msgspec.Struct, tag_field="type"):
    """What a stream of the overview consists of."""

    @property
    def seq(self) -> int | None:
        """There are no numbers: a stream that is begun again tells everything again."""
        return None

    @property
    def resumable(self) -> bool:
        """No client can go on behind an event."""
        return False


class KernelEvent(OverviewEvent, tag="kernel"):
    """A kernel, what it does and what it takes."""

    kernel: msgspec.Raw
    state_since: Annotated[str, Meta(description="Since when it is in its state, UTC.")]
    running: RunningModel | None
    waiting: Annotated[int, Meta(description="Executions that wait.")]
    log_bytes: Annotated[int, Meta(description="Bytes of messages kept on disk.")]
    sampled: Annotated[
        str | None,
        Meta(
            description="When `cpu` and `memory` were measured, UTC; null if they never were. A "
            "stream has each of up to 150 kernels measured every 5 s, and more of them less often."
        ),
    ]
    cpu: Annotated[float | None, Meta(description="Processors that it kept busy.")]
    memory: Annotated[int | None, Meta(description="Bytes of memory of its processes.")]
    host: Annotated[
        str | None,
        Meta(
            description="Where it runs: the other machine, or the engine (`docker`, `slurm`, "
            "`kubernetes`) that has its job; null for this machine."
        ),
    ]


class GoneEvent(OverviewEvent, tag="gone"):
    """A kernel is there no more, or not for the caller.

    A stream begins with the kernels that have ended within a day, as far as the server knows them.
    """

    kernel_id: str
    at: Annotated[
        str | None,
        Meta(
            description="When it ended, UTC; null if that is not known: another replica has it, or "
            "the caller may not see it any more."
        ),
    ] = None
    kernel: Annotated[
        msgspec.Raw | None,
        Meta(description="What it was at its end; its `reason` tells why it has ended."),
    ] = None
    host: Annotated[str | None, Meta(description="Where it ran, as for a kernel.")] = None


class WholeEvent(OverviewEvent, tag="whole"):
    """Every kernel that there is has been told of once: what a client had of others is gone."""

    kernels: Annotated[int, Meta(description="How many those are.")]


class Codes:
    """The first lines of the code that kernels run, each read from the log once."""

    def __init__(self) -> None:
        self._by_kernel: dict[str, tuple[str, str | None]] = {}
        self._left = CODES_READ

    def refill(self) -> None:
        """Allow the code of `CODES_READ` more kernels to be read from their logs."""
        self._left = CODES_READ

    def line(self, kernel_id: str, log: MessageLog, execution: Execution) -> str | None:
        """The first line of an execution's code, or None as long as that is not known."""
        known = self._by_kernel.get(kernel_id)
        if known is not None and known[0] == execution.id and known[1] is not None:
            return known[1]
        if self._left <= 0:
            return None
        self._left -= 1
        found = _code(log, execution)
        self._by_kernel[kernel_id] = execution.id, found
        return found

    def forget(self, kernel_id: str) -> None:
        """Forget a kernel that is gone."""
        self._by_kernel.pop(kernel_id, None)


def _code(log: MessageLog, execution: Execution) -> str | None:
    place, left = execution.place, _HEAD_MESSAGES
    if log.gap_before(place) is not None:
        return None
    while left > 0:
        # There may be more behind what is read at once: the log shares what readers have read.
        found = log.read(place, left, _HEAD_BYTES)
        if isinstance(found, Gap) or not found:
            return None
        for entry in found:
            message = entry.message
            if message.msg_type == "execute_input" and message.parent.msg_id == execution.id:
                return first_line(text_of(content_of(message).get("code")))
        last = found[-1]
        place = Position(last.seq + 1, last.offset + last.size)
        left -= len(found)
    return None


def first_line(code: str) -> str:
    """The first line of code that is neither empty nor a comment; else, the first one."""
    lines = [line.strip() for line in code[:10_000].split("\n")]
    telling = next((line for line in lines if line and not line.startswith("#")), None)
    return (telling if telling is not None else next(filter(None, lines), ""))[:MAX_CODE]


Told = Mapping[str, Mapping[str, KernelEvent]]
"""The latest events of other replicas about their kernels, by the ids of replicas and kernels."""


class Overview:
    """The kernels of one caller, as events.

    Which kernels other replicas have is known from the registry. What those kernels do is known
    from ``told``; a kernel that is not there is shown as the registry has it.
    """

    def __init__(self, kernels: Watched, sampled: Sampled, told: Told | None = None) -> None:
        self._kernels = kernels
        self._sampled = sampled
        self._told = {} if told is None else told
        self._codes = Codes()
        self._departed = 0  # the number of the latest departure that is told
        self._ended: list[GoneEvent] = []  # at other replicas
        self._ends: dict[str, str] = {}  # when kernels of other replicas have ended, by their ids

    def ended(self, event: GoneEvent) -> None:
        """Note that a kernel has ended at another replica, which may tell that again."""
        if event.at is not None and self._ends.get(event.kernel_id) != event.at:
            if len(self._ends) >= MAX_ENDS:
                del self._ends[next(iter(self._ends))]
            self._ends[event.kernel_id] = event.at
            self._ended.append(event)

    def rows(self) -> Iterator[tuple[str, KernelEvent]]:
        """Every kernel as it is now, with its id."""
        self._codes.refill()
        everybody: list[Kernel | KernelElsewhere] = [*self._kernels]
        if others := self._kernels.others():
            everybody = sorted([*everybody, *others], key=lambda one: one.created)
        for one in everybody:
            yield one.id, self._row(one) if isinstance(one, Kernel) else self._row_of(one)

    def _row_of(self, one: KernelElsewhere) -> KernelEvent:
        # Looked up under the replica that has the kernel now. The replica before may not have taken
        # its last event about the kernel back yet: that event is not shown.
        row = self._told.get(one.replica or "", {}).get(one.id)
        # What a replica has told of a kernel that cannot be reached now is out of date.
        return row if row is not None and one.is_reachable else _as_registered(one)

    def _row(self, kernel: Kernel) -> KernelEvent:
        # The kernel's state is told on iopub, and an execution's end on shell, too: either may be
        # ahead. An execution is told of only while both say that it runs.
        traffic, series = kernel.traffic, self._sampled.samples(kernel)
        running = traffic.tracker.at_main_shell if kernel.state.busy else None
        if running is not None and not running.running:
            running = None
        sampled = None if series is None or series.latest is None else series.latest
        return KernelEvent(
            kernel=msgspec.Raw(kernel.model),
            state_since=format_timestamp(kernel.state.since),
            running=None if running is None else self._running(kernel, running),
            waiting=kernel.executions.waiting,
            log_bytes=traffic.log.bytes,
            sampled=format_timestamp(series.at) if series is not None and sampled else None,
            cpu=series.cpu if series is not None and sampled else None,
            memory=sampled.memory if sampled is not None else None,
            host=host_of(kernel),
        )

    def _running(self, kernel: Kernel, execution: Execution) -> RunningModel:
        since = execution.started_at or execution.queued_at
        line = self._codes.line(kernel.id, kernel.traffic.log, execution)
        return RunningModel(execution.id, format_timestamp(since), line)

    async def follow(self, keepalive: float) -> AsyncIterator[OverviewEvent | None]:
        """Yield an event about each kernel, and then one for each change, until the server stops.

        After a silence of ``keepalive`` seconds there is a None.
        """
        told: dict[str, bytes] = {}
        sampling: asyncio.Task[None] | None = None
        whole, last = False, time.monotonic()
        try:
            while self._is_running():
                # A task of its own: a host that answers slowly delays figures, and not states.
                if sampling is None or sampling.done():
                    sampling = _retrieved(self._sampled.sample(SAMPLED_AT_ONCE))
                await self._kernels.refresh()
                for event in self._changes(told):
                    yield event
                    last = time.monotonic()
                if not whole:
                    yield WholeEvent(len(told))
                    whole = True
                if time.monotonic() - last >= keepalive:
                    yield None
                    last = time.monotonic()
                await asyncio.sleep(LOOK_SECONDS)
        finally:
            if sampling is not None:
                sampling.cancel()

    def _is_running(self) -> bool:
        try:
            self._kernels.check_running()
        except ServerStopping:
            return False
        return True

    def _changes(self, told: dict[str, bytes]) -> Iterator[OverviewEvent]:
        """The events that differ from those in ``told``, which is updated."""
        gone = set(told)
        # Lists, as kernels come and go while the client takes the events. Ends are told before the
        # kernels that there are, one of which may have been started anew under an ended one's id.
        # Nothing is awaited between these two, nor until `rows` is made: no end falls between.
        ended = self._kernels.departures(self._departed)
        self._departed = self._kernels.departed
        rows = [*self.rows()]
        elsewhere, self._ended = self._ended, []
        for event in elsewhere:
            gone.discard(event.kernel_id)
            told.pop(event.kernel_id, None)
            yield event
        for one in ended:
            gone.discard(one.kernel_id)
            told.pop(one.kernel_id, None)
            self._codes.forget(one.kernel_id)
            at = format_timestamp(one.at)
            yield GoneEvent(one.kernel_id, at, msgspec.Raw(one.model), one.host)
        for kernel_id, row in rows:
            gone.discard(kernel_id)
            # The JSON is compared: a change that clients cannot see is none.
            encoded = _encode(row)
            if told.get(kernel_id) != encoded:
                told[kernel_id] = encoded
                yield row
        for kernel_id in gone:
            del told[kernel_id]
            self._codes.forget(kernel_id)
            yield GoneEvent(kernel_id)


_encode: Final = msgspec.json.Encoder().encode


class _Seen(msgspec.Struct):
    last_activity: str


_seen: Final = msgspec.json.Decoder(_Seen).decode


def _as_registered(one: KernelElsewhere) -> KernelEvent:
    """The event about a kernel of which only the model is known."""
    return KernelEvent(
        kernel=msgspec.Raw(one.model),
        state_since=_seen(one.model).last_activity,
        running=None,
        waiting=0,
        log_bytes=0,
        sampled=None,
        cpu=None,
        memory=None,
        host=None,
    )


def host_of(kernel: Kernel) -> str | None:
    """Where a kernel runs, as `KernelEvent.host` tells it."""
    try:
        options = options_of(settled(kernel.spec, kernel.given))
    except KernelStartFailed:
        return None
    if options is None:
        return engine_of(kernel.spec)
    return options.host if isinstance(options.host, str) else None


def _retrieved(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task whose error is ignored, as the next task does the same work again."""
    task = asyncio.get_running_loop().create_task(work, name="sample for an overview")
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
