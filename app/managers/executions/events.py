"""The events of an execution, which are the same over every transport (SSE, NDJSON)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, Final

import msgspec

from ...protocol.messages import Message, format_timestamp
from ..log.message_log import MessageLog
from .contents import content_of, text_of
from .execution import Execution
from .history import ExecutionReader
from .outputs import display_id_of
from .queue import Executions
from .reply_errors import output_of

__all__ = ["Event", "follow"]


class Event(msgspec.Struct, tag_field="type", kw_only=True):
    """One event of an execution; ``seq`` is the number of its message in the kernel's log.

    An event without a message of its own has the number of the newest message before it, or none.
    """

    seq: int | None = None

    @property
    def resumable(self) -> bool:
        """Whether a client may resume behind this event: it has then missed no earlier one."""
        return self.seq is not None


class Queued(Event, tag="queued"):
    """The execution was asked for. This is only ever the first event."""

    time: str
    session: str


class Started(Event, tag="started"):
    """The kernel has begun with the execution."""


class Code(Event, tag="code"):
    """The code that the kernel executes. Silent executions have no such event."""

    code: str
    execution_count: int | None


class Stream(Event, tag="stream"):
    """The code has written text to ``stdout`` or ``stderr``, which ``name`` tells."""

    name: str
    text: str


class Display(Event, tag="display"):
    """The code displays data, by media type."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str | None


class UpdateDisplay(Display, tag="update_display"):
    """The data of every display with this ``display_id`` are replaced.

    ``executions`` are the ids of other executions that show such a display.
    """

    executions: list[str] = []


class Result(Event, tag="result"):
    """The value of the code's last expression, by media type."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    execution_count: int | None


class Error(Event, tag="error"):
    """The code has failed."""

    ename: str
    evalue: str
    traceback: list[str]


class ClearOutput(Event, tag="clear_output"):
    """All output so far is to be cleared: now, or at the next output if ``wait``."""

    wait: bool


class InputRequested(Event, tag="input_request"):
    """The code asks its user for a line; an answer names ``id``."""

    id: str
    prompt: str
    password: bool


class StepTaken(Event, tag="step"):
    """A step was taken against the execution from outside: ``cancel``, ``timeout``, ...

    It shares its number with the message before it. So a client that resumes behind that number
    may get this event a second time, rather than miss it.
    """

    step: str
    time: str
    detail: str

    @property
    def resumable(self) -> bool:
        return False


class GapFound(Event, tag="gap"):
    """The kernel's log has dropped messages, and those of this execution that were among them."""

    messages: int
    bytes: int


class Ended(Event, tag="ended"):
    """The execution has ended. This is always the last event."""

    time: str
    state: str
    reason: str | None
    execution_count: int | None
    seconds: float | None


class Closing(Event, tag="closing"):
    """The server ends this stream although the execution goes on: it is shutting down."""

    reason: str


def follow(
    executions: Executions,
    log: MessageLog,
    execution: Execution,
    after: int | None,
    keepalive: float,
) -> AsyncIterator[Event | None]:
    """The events so far, from behind number ``after`` if that is given, then as they happen.

    Yields None after ``keepalive`` seconds without an event. Ends with `Ended` or `Closing`.
    Raises `AfterBeyondEnd` at once, not at the first step of the iteration.
    """
    reader = ExecutionReader(log, execution, after, updates=True)
    return _follow(executions, execution, reader, after, keepalive)


async def _follow(
    executions: Executions,
    execution: Execution,
    reader: ExecutionReader,
    after: int | None,
    keepalive: float,
) -> AsyncIterator[Event | None]:
    if after is None:
        yield Queued(time=format_timestamp(execution.queued_at), session=execution.session)
    steps = _Steps(execution, after)
    while True:
        gap, entries = await reader.fetch()
        if gap is not None:
            yield GapFound(seq=reader.gone_to, messages=gap.messages, bytes=gap.bytes)
        for entry in entries:
            for step in steps.before(entry.seq):
                yield step
            event = event_of(output_of(execution, entry.message))
            if isinstance(event, UpdateDisplay):
                showing = executions.showing(event.display_id)
                if entry.message.parent.msg_id != execution.id and execution not in showing:
                    continue  # an update of a display that this execution does not show
                event.executions = [other.id for other in showing if other is not execution]
            if event is not None:
                yield event
        if reader.behind:
            continue
        for step in steps.before(None):
            yield step
        # An execution may end while the consumer of a yield above runs: that is seen here, and
        # `finished` is false until its last message was read. From here to the wait nothing is
        # suspended, and the tracker wakes the log at an end: none that comes later is missed.
        if execution.ended and (reader.finished or not execution.sent):
            yield _ended(execution)
            return
        if executions.closing:
            yield Closing(reason="The server is shutting down")
            return
        if not await reader.wait_for(keepalive):
            yield None


class _Steps:
    """Yields the steps of an execution, each behind the messages that came before it."""

    def __init__(self, execution: Execution, after: int | None) -> None:
        self._execution = execution
        self._told = sum(after is not None and step.seq < after for step in execution.steps)

    def before(self, seq: int | None) -> Iterator[Event]:
        steps = self._execution.steps
        while self._told < len(steps) and (seq is None or steps[self._told].seq < seq):
            step = steps[self._told]
            self._told += 1
            yield StepTaken(
                seq=step.seq, step=step.step, time=format_timestamp(step.time), detail=step.detail
            )


def event_of(message: Message) -> Event | None:
    """The event that a kernel's message stands for, if any."""
    make = _MAKERS.get(message.msg_type)
    if make is None:
        return None
    event: Event | None = make(content_of(message))
    if event is not None:
        event.seq = message.seq
    if isinstance(event, InputRequested):
        event.id = message.header.msg_id
    return event


def _ended(execution: Execution) -> Event:
    seconds = execution.seconds
    return Ended(
        seq=execution.last_seq,
        time=format_timestamp(execution.ended_at or 0.0),
        state=str(execution.state),
        reason=execution.reason or None,
        execution_count=execution.execution_count,
        seconds=None if seconds is None else round(seconds, 6),
    )


def _status(content: dict[str, Any]) -> Event | None:
    return Started() if content.get("execution_state") == "busy" else None


def _code(content: dict[str, Any]) -> Event:
    return Code(code=text_of(content.get("code")), execution_count=_count(content))


def _stream(content: dict[str, Any]) -> Event:
    return Stream(name=text_of(content.get("name")), text=text_of(content.get("text")))


def _display(content: dict[str, Any]) -> Event:
    data, metadata = _bundle(content)
    return Display(data=data, metadata=metadata, display_id=display_id_of(content))


def _update(content: dict[str, Any]) -> Event:
    data, metadata = _bundle(content)
    return UpdateDisplay(data=data, metadata=metadata, display_id=display_id_of(content))


def _result(content: dict[str, Any]) -> Event:
    data, metadata = _bundle(content)
    return Result(data=data, metadata=metadata, execution_count=_count(content))


def _error(content: dict[str, Any]) -> Event:
    traceback = content.get("traceback")
    return Error(
        ename=text_of(content.get("ename")),
        evalue=text_of(content.get("evalue")),
        traceback=[str(line) for line in traceback] if isinstance(traceback, list) else [],
    )


def _clear(content: dict[str, Any]) -> Event:
    return ClearOutput(wait=bool(content.get("wait")))


def _input(content: dict[str, Any]) -> Event:
    prompt = text_of(content.get("prompt"))
    return InputRequested(id="", prompt=prompt, password=bool(content.get("password")))


def _bundle(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    data, metadata = content.get("data"), content.get("metadata")
    return (
        data if isinstance(data, dict) else {},
        metadata if isinstance(metadata, dict) else {},
    )


def _count(content: dict[str, Any]) -> int | None:
    count = content.get("execution_count")
    return count if isinstance(count, int) else None


_MAKERS: Final[dict[str, Callable[[dict[str, Any]], Event | None]]] = {
    "status": _status,
    "execute_input": _code,
    "stream": _stream,
    "display_data": _display,
    "update_display_data": _update,
    "execute_result": _result,
    "error": _error,
    "clear_output": _clear,
    "input_request": _input,
}
