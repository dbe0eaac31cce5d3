"""The events of an execution, which are the same over every transport (SSE, NDJSON)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from ...protocol.messages import Message, format_timestamp
from ..log.message_log import MessageLog
from .contents import content_of, count_of, text_of
from .execution import Execution, ExecutionState, StepName
from .history import ExecutionReader
from .outputs import display_id_of
from .queue import Executions
from .reply_errors import output_of

__all__ = ["ClosingEvent", "Event", "ExecutionEvent", "GapEvent", "follow"]


class Event(msgspec.Struct, tag_field="type", kw_only=True):
    """One event of an execution.

    An event without a message of its own has the number of the newest message before it, or none.
    """

    seq: Annotated[int | None, Meta(description="Its number in the kernel's log.")] = None

    @property
    def resumable(self) -> bool:
        """Whether a client may resume behind this event: it has then missed no earlier one."""
        return self.seq is not None


class QueuedEvent(Event, tag="queued"):
    """The execution was asked for."""

    # This is only ever the first event.
    time: str
    session: str


class StartedEvent(Event, tag="started"):
    """The kernel has begun with the execution."""


class CodeEvent(Event, tag="code"):
    """The code that the kernel executes; silent executions have no such event."""

    code: str
    execution_count: int | None


class StreamEvent(Event, tag="stream"):
    """Text on stdout or stderr."""

    name: str
    text: str


class DisplayEvent(Event, tag="display"):
    """An output to show."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str | None


class UpdateDisplayEvent(DisplayEvent, tag="update_display"):
    """An output that replaces the one with this `display_id`."""

    executions: Annotated[
        list[str],
        Meta(description="Other executions with such an output, which is changed there as well."),
    ] = []


class ResultEvent(Event, tag="result"):
    """The value of the code."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    execution_count: int | None


class ErrorEvent(Event, tag="error"):
    """The code has failed."""

    ename: str
    evalue: str
    traceback: list[str]


class ClearOutputEvent(Event, tag="clear_output"):
    """All output so far is to be cleared: now, or at the next output if `wait`."""

    wait: bool


class InputRequestEvent(Event, tag="input_request"):
    """The code asks its user for a line."""

    id: Annotated[str, Meta(description="By which an answer names it.")]
    prompt: str
    password: bool


class StepEvent(Event, tag="step"):
    """The execution was cancelled or interrupted, has timed out, or its kernel is killed."""

    step: StepName
    time: str
    detail: str

    @property
    def resumable(self) -> bool:
        """False: a step shares its number with the message before it.

        So a client that resumes behind that number may get this event a second time, rather than
        miss it.
        """
        return False


class GapEvent(Event, tag="gap"):
    """The kernel's log has dropped so many messages, up to the number `seq`."""

    messages: int
    bytes: int


class EndedEvent(Event, tag="ended"):
    """The execution has ended. This is always the last event."""

    time: str
    state: ExecutionState
    reason: str | None
    execution_count: int | None
    seconds: float | None


class ClosingEvent(Event, tag="closing"):
    """The stream ends although the execution goes on: come back with the last number."""

    reason: str


ExecutionEvent = (
    QueuedEvent
    | StartedEvent
    | CodeEvent
    | StreamEvent
    | DisplayEvent
    | UpdateDisplayEvent
    | ResultEvent
    | ErrorEvent
    | ClearOutputEvent
    | InputRequestEvent
    | StepEvent
    | GapEvent
    | EndedEvent
    | ClosingEvent
)
"""All that `follow` may yield."""


def follow(
    executions: Executions,
    log: MessageLog,
    execution: Execution,
    after: int | None,
    keepalive: float,
    permission: Callable[[], bool],
) -> AsyncIterator[Event | None]:
    """The events so far, from behind number ``after`` if that is given, then as they happen.

    Yields None after ``keepalive`` seconds without an event. Ends with `EndedEvent` or
    `ClosingEvent`, or with neither when the log is woken and there is no ``permission`` any more.
    Raises `AfterBeyondEnd` at once, not at the first step of the iteration.
    """
    reader = ExecutionReader(log, execution, after, updates=True)
    return _follow(executions, execution, reader, after, keepalive, permission)


async def _follow(
    executions: Executions,
    execution: Execution,
    reader: ExecutionReader,
    after: int | None,
    keepalive: float,
    permission: Callable[[], bool],
) -> AsyncIterator[Event | None]:
    if after is None:
        yield QueuedEvent(time=format_timestamp(execution.queued_at), session=execution.session)
    steps = _Steps(execution, after)
    while permission():
        gap, entries = await reader.fetch()
        if gap is not None:
            yield GapEvent(seq=reader.gone_to, messages=gap.messages, bytes=gap.bytes)
        for entry in entries:
            # The execution may end while the consumer of an event takes its time. The messages that
            # are left come all the same, in the order of the log, and then the end.
            for step in steps.before(entry.seq):
                yield step
            event = event_of(output_of(execution, entry.message))
            if isinstance(event, UpdateDisplayEvent):
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
            yield ClosingEvent(reason="The server is shutting down")
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
            yield StepEvent(
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
    if isinstance(event, InputRequestEvent):
        event.id = message.header.msg_id
    return event


def _ended(execution: Execution) -> Event:
    seconds = execution.seconds
    return EndedEvent(
        seq=execution.last_seq,
        time=format_timestamp(execution.ended_at or 0.0),
        state=execution.state,
        reason=execution.reason or None,
        execution_count=execution.execution_count,
        seconds=None if seconds is None else round(seconds, 6),
    )


def _status(content: dict[str, Any]) -> Event | None:
    return StartedEvent() if content.get("execution_state") == "busy" else None


def _code(content: dict[str, Any]) -> Event:
    return CodeEvent(code=text_of(content.get("code")), execution_count=_count(content))


def _stream(content: dict[str, Any]) -> Event:
    return StreamEvent(name=text_of(content.get("name")), text=text_of(content.get("text")))


def _display(content: dict[str, Any]) -> Event:
    data, metadata = _bundle(content)
    return DisplayEvent(data=data, metadata=metadata, display_id=display_id_of(content))


def _update(content: dict[str, Any]) -> Event:
    data, metadata = _bundle(content)
    return UpdateDisplayEvent(data=data, metadata=metadata, display_id=display_id_of(content))


def _result(content: dict[str, Any]) -> Event:
    data, metadata = _bundle(content)
    return ResultEvent(data=data, metadata=metadata, execution_count=_count(content))


def _error(content: dict[str, Any]) -> Event:
    traceback = content.get("traceback")
    return ErrorEvent(
        ename=text_of(content.get("ename")),
        evalue=text_of(content.get("evalue")),
        traceback=[str(line) for line in traceback] if isinstance(traceback, list) else [],
    )


def _clear(content: dict[str, Any]) -> Event:
    return ClearOutputEvent(wait=bool(content.get("wait")))


def _input(content: dict[str, Any]) -> Event:
    prompt = text_of(content.get("prompt"))
    return InputRequestEvent(id="", prompt=prompt, password=bool(content.get("password")))


def _bundle(content: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    data, metadata = content.get("data"), content.get("metadata")
    return (
        data if isinstance(data, dict) else {},
        metadata if isinstance(metadata, dict) else {},
    )


def _count(content: dict[str, Any]) -> int | None:
    return count_of(content.get("execution_count"))


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
