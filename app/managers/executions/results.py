"""An execution as the API shows it: its state, its outputs so far, and the data of one output."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from ...protocol.messages import Message, format_timestamp
from ..errors import OutputNotFound
from ..log.entries import Batch, Gap
from ..log.message_log import MessageLog
from .contents import content_of, text_of
from .execution import Execution, ExecutionState, InputRequest, Step, StepName
from .history import ExecutionReader, late_output
from .outputs import Cut, Numbering, OutputAssembler, display_id_of
from .reply_errors import output_of

__all__ = ["ExecutionModel", "ExecutionResultModel", "OutputURL", "info", "output", "result"]

OutputURL = Callable[[int, str], str]
"""Makes the URL of an output's data from the output's number and a media type."""

# Media types whose data is text. The data of any other type is base64.
_TEXT: Final = re.compile(
    r"text/.*|.*[+/](xml|json|javascript|ecmascript|x-latex|x-tex|x-python|yaml)", re.I
)
_MEDIA_TYPE: Final = re.compile(
    r"[\w!#$&^.+-]{1,127}/[\w!#$&^.+-]{1,127}(; ?[\w-]+=[\w.+-]+)*", re.A
)


class StepModel(msgspec.Struct):
    """Something that was done to an execution from outside."""

    step: StepName
    time: Annotated[str, Meta(description="UTC.")]
    detail: Annotated[str, Meta(description="Why, for people.")]


class QuestionModel(msgspec.Struct):
    """What an execution waits for."""

    id: Annotated[str, Meta(description="By which an answer names it.")]
    prompt: str
    password: Annotated[bool, Meta(description="Whether the answer should not be shown.")]


class GapModel(msgspec.Struct):
    """What has left the log."""

    messages: int
    bytes: int


class CutModel(msgspec.Struct):
    """What is left out between the head and the tail, and of outputs that are shortened."""

    outputs: Annotated[int, Meta(description="Outputs of which nothing is shown.")]
    bytes: Annotated[int, Meta(description="Of all that is left out.")]


class ExecutionModel(msgspec.Struct):
    """An execution: one `execute_request`, whoever sent it."""

    id: Annotated[str, Meta(description="The `msg_id` of its request.")]
    state: Annotated[
        ExecutionState,
        Meta(
            description="`queued` and `running`; then one that stays. `aborted`: it never ran, as "
            "one before it failed or the kernel ended. `cancelled`: it was, and has not ended "
            "well. `lost`: it ran, and how it ended is not known."
        ),
    ]
    session: Annotated[str, Meta(description="The session that asked for it.")]
    generation: Annotated[
        int | None,
        Meta(
            description="Which of the kernel's processes it was sent to: the `generation` that "
            "the kernel had then. Null until it is sent."
        ),
    ]
    queued: Annotated[str, Meta(description="When it was asked for, UTC.")]
    started: Annotated[str | None, Meta(description="When the kernel began with it, UTC.")]
    ended: Annotated[str | None, Meta(description="When it ended, UTC.")]
    seconds: Annotated[float | None, Meta(description="How long it has run.")]
    execution_count: Annotated[
        int | None, Meta(description="The kernel's count, once it has ended.")
    ]
    first_seq: Annotated[int | None, Meta(description="The number of its first message.")]
    last_seq: Annotated[int | None, Meta(description="The number of its last message.")]
    reason: Annotated[
        str | None, Meta(description="Why it has ended so, where the output does not tell.")
    ]
    timeout: Annotated[float | None, Meta(description="Seconds that it may run.")]
    queue: Annotated[
        str | None, Meta(description="The queue that it was asked for in, if that was named.")
    ]
    input_request: Annotated[
        QuestionModel | None, Meta(description="What it asks for at the moment.")
    ]
    steps: list[StepModel]


class ExecutionResultModel(ExecutionModel):
    """An execution with its outputs so far, in the form of notebooks (nbformat 4)."""

    outputs: list[dict[str, Any]]
    user_expressions: dict[str, Any]
    payload: Annotated[
        list[Any], Meta(description="What IPython sends to be shown in a pager, and such.")
    ]
    gap: Annotated[
        GapModel | None,
        Meta(description="What of the kernel's log is gone in which this execution was."),
    ]
    cut: Annotated[CutModel | None, Meta(description="What `max_bytes` has left out.")]
    late_outputs: Annotated[
        int,
        Meta(
            description="How many of the outputs, the last ones, have come after the end: a "
            "thread went on to print, or a child process."
        ),
    ]


def info(execution: Execution) -> ExecutionModel:
    """The execution without its outputs, as the API shows it in lists."""
    return ExecutionModel(**_fields(execution))


def _fields(execution: Execution) -> dict[str, Any]:
    asked, seconds = execution.input_request, execution.seconds
    return {
        "id": execution.id,
        "state": execution.state,
        "session": execution.session,
        "generation": execution.generation,
        "queued": format_timestamp(execution.queued_at),
        "started": _time(execution.started_at),
        "ended": _time(execution.ended_at),
        "seconds": None if seconds is None else round(seconds, 6),
        "execution_count": execution.execution_count,
        "first_seq": execution.first_seq,
        "last_seq": execution.last_seq,
        "reason": execution.reason or None,
        "timeout": execution.timeout,
        "queue": execution.queue,
        "input_request": _question(asked) if asked is not None else None,
        "steps": [_step(step) for step in execution.steps],
    }


def _question(asked: InputRequest) -> QuestionModel:
    return QuestionModel(asked.id, asked.prompt, asked.password)


def _step(step: Step) -> StepModel:
    return StepModel(step.step, format_timestamp(step.time), step.detail)


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else format_timestamp(seconds)


async def result(
    log: MessageLog, execution: Execution, url: OutputURL, max_bytes: int
) -> ExecutionResultModel:
    """The execution with its outputs so far, of which about ``max_bytes`` are held."""
    assembler = OutputAssembler(url, max_bytes)
    expressions: Any = {}
    payload: Any = []
    gone = Gap(0, 0)
    async for gap, entries in _so_far(log, execution):
        if gap is not None:
            gone = Gap(gone.messages + gap.messages, gone.bytes + gap.bytes)
        for entry in entries:
            message = entry.message
            if message.msg_type == "execute_reply":
                reply = content_of(message)
                expressions, payload = reply.get("user_expressions"), reply.get("payload")
            assembler.add(output_of(execution, message))
    # An execution that goes on may have more messages by now: the next call reads those.
    assembler.begin_late()
    async for gap, entries in late_output(log, execution):
        if gap is not None:
            gone = Gap(gone.messages + gap.messages, gone.bytes + gap.bytes)
        for entry in entries:
            assembler.add(entry.message)
    expressions, more = _within(expressions if isinstance(expressions, dict) else {}, max_bytes)
    payload, most = _payload_within(payload if isinstance(payload, list) else [], max_bytes)
    cut = assembler.cut
    if more or most:
        cut = Cut(*(cut or (0, 0)))
        cut = cut._replace(bytes=cut.bytes + more + most)
    return ExecutionResultModel(
        **_fields(execution),
        outputs=assembler.outputs,
        user_expressions=expressions,
        payload=payload,
        gap=GapModel(*gone) if gone.messages else None,
        cut=CutModel(*cut) if cut is not None else None,
        late_outputs=assembler.late,
    )


async def _so_far(log: MessageLog, execution: Execution) -> AsyncIterator[Batch]:
    """The messages of an execution up to now, as far as it has not ended before."""
    reader = ExecutionReader(log, execution, updates=True)
    # Only up to here: of an execution that prints as fast as this reads, there is no end.
    until = log.next_seq
    while True:
        yield await reader.fetch()
        if not reader.behind or reader.cursor >= until:
            return


def _within(values: dict[str, Any], max_bytes: int) -> tuple[dict[str, Any], int]:
    """The values that fit into ``max_bytes`` together, and the bytes of those left out."""
    shown, used, cut = {}, 0, 0
    for name, value in values.items():
        size = len(name.encode("utf-8", "replace")) + len(msgspec.json.encode(value))
        if used + size <= max_bytes:
            shown[name] = value
            used += size
        else:
            cut += size
    return shown, cut


def _payload_within(items: list[Any], max_bytes: int) -> tuple[list[Any], int]:
    shown, cut = _within({str(number): item for number, item in enumerate(items)}, max_bytes)
    return [*shown.values()], cut


class Blob(msgspec.Struct):
    """The data of an output, and the media type that the kernel has named for it."""

    media_type: str
    data: bytes | AsyncIterator[bytes]


async def output(
    log: MessageLog, execution: Execution, number: int, mime: str | None = None
) -> Blob:
    """The data of one output: of the media type ``mime`` or, without it, of the richest one.

    ``number`` is the output's index in a `result` from which nothing was cut. Raises
    `OutputNotFound`.
    """
    finder = _OutputFinder(number)
    async for batch in _so_far(log, execution):
        for entry in batch.entries:
            finder.add(output_of(execution, entry.message))
    finder.begin_late()
    async for batch in late_output(log, execution):
        for entry in batch.entries:
            finder.add(entry.message)
    found = finder.found
    if found is None or (isinstance(found, range) and mime not in (None, "text/plain")):
        raise OutputNotFound(f"There is no output {number} with such data")
    if isinstance(found, range):
        return Blob("text/plain; charset=utf-8", _text_of_stream(log, execution, found))
    mime = mime or next((name for name in found if name != "text/plain"), "text/plain")
    if mime not in found:
        mime = mime.replace(" ", "+")  # the plus in image/svg+xml, if a URL has it unescaped
    if mime not in found:
        raise OutputNotFound(f"Output {number} has no data of this media type")
    return _blob(mime, found[mime])


async def _text_of_stream(
    log: MessageLog, execution: Execution, numbers: range
) -> AsyncIterator[bytes]:
    """The text of a stream, message by message, as memory may not hold all of it."""
    if execution.end is not None and numbers.start >= execution.end.cursor:
        async for batch in late_output(log, execution):
            for entry in batch.entries:
                if entry.seq in numbers and entry.message.msg_type == "stream":
                    yield text_of(content_of(entry.message).get("text")).encode()
        return
    reader = ExecutionReader(log, execution, numbers.start - 1)
    while reader.cursor < numbers.stop and not reader.finished:
        for entry in (await reader.fetch()).entries:
            if entry.seq in numbers and entry.message.msg_type == "stream":
                yield text_of(content_of(entry.message).get("text")).encode()


class _OutputFinder:
    """Finds one output among the messages of an execution."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._numbering = Numbering()
        self._display_id: str | None = None
        self.found: dict[str, Any] | range | None = None
        """The output's data by media type; of a stream, the range of its messages' numbers."""

    def begin_late(self) -> None:
        """Take the messages from now on for late output, which came after the execution's end."""
        self._numbering.part()

    def add(self, message: Message) -> None:
        content = content_of(message)
        msg_type = message.msg_type
        cleared, number = self._numbering.take(msg_type, content)
        if cleared:
            self._display_id = self.found = None
        if msg_type == "update_display_data":
            if self._display_id is not None and display_id_of(content) == self._display_id:
                self.found = _data_of(content)
        elif number != self._number:
            return
        elif msg_type == "stream":
            first = self.found.start if isinstance(self.found, range) else message.seq
            self.found = range(first, message.seq + 1)
        elif msg_type != "error":
            self.found = _data_of(content)
            self._display_id = display_id_of(content)


def _data_of(content: dict[str, Any]) -> dict[str, Any]:
    data = content.get("data")
    return data if isinstance(data, dict) else {}


def _blob(mime: str, value: Any) -> Blob:
    media_type = mime if _MEDIA_TYPE.fullmatch(mime) else "application/octet-stream"
    is_text = isinstance(value, str) or (
        isinstance(value, list) and all(isinstance(line, str) for line in value)
    )
    if not is_text:
        return Blob(media_type, msgspec.json.encode(value))
    text = text_of(value)
    if not _TEXT.fullmatch(mime):
        try:
            return Blob(media_type, base64.b64decode("".join(text.split()), validate=True))
        except (binascii.Error, ValueError):  # some kernels send such data as plain text
            pass
    if media_type.startswith("text/") and "charset" not in media_type:
        media_type += "; charset=utf-8"
    return Blob(media_type, text.encode())
