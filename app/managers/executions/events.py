"""What happens to an execution, event by event: the same over every transport."""

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
    """Something that has happened; ``seq`` is its number in the kernel's log.

    An event that stands for no message has the number of the newest message before it, or none.
    """

    seq: int | None = None

    @property
    def resumable(self) -> bool:
        """Whether a client that has this event has all those before it."""
        return self.seq is not None


class Queued(Event, tag="queued"):
    """It was asked for. Only at the beginning."""

    time: str
    session: str


class Started(Event, tag="started"):
    """The kernel has begun with it."""


class Code(Event, tag="code"):
    """What the kernel executes; not told of silent executions."""

    code: str
    execution_count: int | None


class Stream(Event, tag="stream"):
    """Text on ``stdout`` or ``stderr``."""

    name: str
    text: str


class Display(Event, tag="display"):
    """Something to show."""

    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str | None


class UpdateDisplay(Display, tag="update_display"):
    """Something to show in the place of what has this ``display_id``.

    ``executions`` are others that show such a thing, and show this from now on.
    """

    executions: list[str] = []


class Result(Event, tag="result"):
    """The value of the code."""

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
    """Something was done to the execution from outside: ``cancel``, ``timeout``, ...

    Told again to a client that resumes just there.
    """

    step: str
    time: str
    detail: str

    @property
    def resumable(self) -> bool:
        return False


class GapFound(Event, tag="gap"):
    """So much of the kernel's log is gone, and what it held of this execution with it."""

    messages: int
    bytes: int


class Ended(Event, tag="ended"):
    """It has ended. Always the last event."""

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

    None after ``keepalive`` seconds without any. Ends with `Ended` or `Closing`. Raises
    `AfterBeyondEnd`, at once.
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
                    continue  # nothing that it shows
                event.executions = [other.id for other in showing if other is not execution]
            if event is not None:
                yield event
        if reader.behind:
            continue
        for step in steps.before(None):
            yield step
        if execution.ended and (reader.finished or not execution.sent):
            yield _ended(execution)
            return
        if executions.closing:
            yield Closing(reason="The server is shutting down")
            return
        if not await reader.wait_for(keepalive):
            yield None


class _Steps:
    """Tells what was done to an execution, each step behind the messages that came before it."""

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
    """The event that a message of a kernel is, if it is one."""
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
