"""Executions and messages, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, RootModel

from ..managers.executions.execution import StepName
from ..options import MAX_EXECUTION_SECONDS

__all__ = [
    "CancelExecution",
    "ExecutionEventModel",
    "ExecutionModel",
    "ExecutionResultModel",
    "InputModel",
    "LogEventModel",
    "MessagesModel",
    "RunCode",
]


def _whole(value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("half of a surrogate pair is no text") from None
    return value


Text = Annotated[str, AfterValidator(_whole)]
"""A text that can be encoded as UTF-8."""

MAX_QUEUE_NAME: Final = 100
"""Characters that the name of a queue may have."""

State = Literal["queued", "running", "ok", "error", "aborted", "cancelled", "lost"]


class RunCode(BaseModel):
    """Code to execute."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"code": "6 * 7", "timeout": 60}]},
    )

    code: Text = Field(description="The code.")
    silent: bool = Field(
        False, description="Do not count it, and show as little of it as the kernel can."
    )
    store_history: bool = Field(True, description="Count it, and put it into the history.")
    user_expressions: dict[Text, Text] = Field(
        default_factory=dict, description="Expressions to evaluate after it, by names of yours."
    )
    stop_on_error: bool = Field(
        True,
        description="If it fails, executions that wait behind it in its queue are `aborted`.",
    )
    queue: Text | None = Field(
        None,
        min_length=1,
        max_length=MAX_QUEUE_NAME,
        description="The name of the queue in which it waits. Executions of all queues run in the "
        "order in which they were asked for. Without a name, all that your address asks for waits "
        "in one queue.",
    )
    allow_stdin: bool = Field(
        False, description="Let it ask for input; without, `input()` fails at once."
    )
    timeout: float | None = Field(
        None,
        gt=0,
        le=MAX_EXECUTION_SECONDS,
        description="Seconds that it may run, from when it begins. Then it is interrupted and, "
        "after `execution_interrupt_grace` seconds more, its kernel's process is killed. Left out: "
        "what the server's options `execution_timeout_default` and `execution_timeout_max` say.",
    )
    cancel_on_disconnect: bool = Field(
        False,
        description="Cancel it if this connection ends before the answer, and no other request "
        "for the same with its `Idempotency-Key` waits. Takes `wait`.",
    )


class CancelExecution(BaseModel):
    """How to cancel."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        allow_inf_nan=False,
        json_schema_extra={"examples": [{"kill_after": 30}]},
    )

    kill_after: float | None = Field(
        None,
        ge=0,
        le=MAX_EXECUTION_SECONDS,
        description="Seconds after the interrupt when the kernel's process is killed, if the "
        "execution still runs.",
    )


class InputModel(BaseModel):
    """An answer to `input()`."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"value": "Ada"}]})

    value: Text = Field(description="The line, without its end.")
    prompt: Text | None = Field(
        None,
        description="The `id` of the `input_request` that it answers; refused if the execution "
        "asks something else by now.",
    )


class StepModel(BaseModel):
    """Something that was done to an execution from outside."""

    step: StepName
    time: str = Field(description="UTC.")
    detail: str = Field(description="Why, for people.")


class QuestionModel(BaseModel):
    """What an execution waits for."""

    id: str = Field(description="By which an answer names it.")
    prompt: str
    password: bool = Field(description="Whether the answer should not be shown.")


class ExecutionModel(BaseModel):
    """An execution: one `execute_request`, whoever sent it."""

    id: str = Field(description="The `msg_id` of its request.")
    state: State = Field(
        description="`queued` and `running`; then one that stays. `aborted`: it never ran, as one "
        "before it failed or the kernel ended. `cancelled`: it was, and has not ended well. "
        "`lost`: it ran, and how it ended is not known."
    )
    session: str = Field(description="The session that asked for it.")
    generation: int | None = Field(
        description="Which of the kernel's processes it was sent to: the `generation` that the "
        "kernel had then. Null until it is sent."
    )
    queued: str = Field(description="When it was asked for, UTC.")
    started: str | None = Field(description="When the kernel began with it, UTC.")
    ended: str | None = Field(description="When it ended, UTC.")
    seconds: float | None = Field(description="How long it has run.")
    execution_count: int | None = Field(description="The kernel's count, once it has ended.")
    first_seq: int | None = Field(description="The number of its first message.")
    last_seq: int | None = Field(description="The number of its last message.")
    reason: str | None = Field(description="Why it has ended so, where the output does not tell.")
    timeout: float | None = Field(description="Seconds that it may run.")
    queue: str | None = Field(description="The queue that it was asked for in, if that was named.")
    input_request: QuestionModel | None = Field(description="What it asks for at the moment.")
    steps: list[StepModel]


class StreamOutput(BaseModel):
    """Text."""

    output_type: Literal["stream"]
    name: str = Field(examples=["stdout", "stderr"])
    text: str


class DisplayOutput(BaseModel):
    """Something to show."""

    output_type: Literal["display_data"]
    data: dict[str, Any] = Field(
        description="By media type. What is too large is the URL where it is, and "
        "`metadata.kernelkeep.references` has its size in bytes; plain text that `max_bytes` has "
        "shortened is in `metadata.kernelkeep.shortened`, with the size that it has in whole."
    )
    metadata: dict[str, Any]


class ResultOutput(BaseModel):
    """The value of the code."""

    output_type: Literal["execute_result"]
    execution_count: int | None
    data: dict[str, Any] = Field(description="As of a display.")
    metadata: dict[str, Any]


class ErrorOutput(BaseModel):
    """The code has failed."""

    output_type: Literal["error"]
    ename: str
    evalue: str
    traceback: list[str]


Output = Annotated[
    StreamOutput | DisplayOutput | ResultOutput | ErrorOutput, Field(discriminator="output_type")
]


class GapModel(BaseModel):
    """What has left the log."""

    messages: int
    bytes: int


class CutModel(BaseModel):
    """What is left out between the head and the tail, and of outputs that are shortened."""

    outputs: int = Field(description="Outputs of which nothing is shown.")
    bytes: int = Field(description="Of all that is left out.")


class ExecutionResultModel(ExecutionModel):
    """An execution with its outputs so far, in the form of notebooks (nbformat 4)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "8f14e45f-ceea-467f-a8d2-5f4b3c9e7d10",
                    "state": "ok",
                    "session": "http-0cc175b9c0f1b6a831c399e269772661",
                    "generation": 1,
                    "queued": "2026-11-22T14:49:48.790120Z",
                    "started": "2026-11-22T14:49:48.791467Z",
                    "ended": "2026-11-22T14:49:48.797413Z",
                    "seconds": 0.006,
                    "execution_count": 1,
                    "first_seq": 7,
                    "last_seq": 11,
                    "reason": None,
                    "timeout": 60,
                    "queue": None,
                    "input_request": None,
                    "steps": [],
                    "outputs": [
                        {
                            "output_type": "execute_result",
                            "execution_count": 1,
                            "data": {"text/plain": "42"},
                            "metadata": {},
                        }
                    ],
                    "user_expressions": {},
                    "payload": [],
                    "gap": None,
                    "cut": None,
                    "late_outputs": 0,
                }
            ]
        }
    )

    outputs: list[Output]
    user_expressions: dict[str, Any]
    payload: list[Any] = Field(description="What IPython sends to be shown in a pager, and such.")
    gap: GapModel | None = Field(
        description="What of the kernel's log is gone in which this execution was."
    )
    cut: CutModel | None = Field(description="What `max_bytes` has left out.")
    late_outputs: int = Field(
        description="How many of the outputs, the last ones, have come after the end: a thread "
        "went on to print, or a child process."
    )


class _Event(BaseModel):
    seq: int | None = Field(None, description="Its number in the kernel's log.")


class QueuedEvent(_Event):
    """It was asked for."""

    type: Literal["queued"]
    time: str
    session: str


class StartedEvent(_Event):
    """The kernel has begun with it."""

    type: Literal["started"]


class CodeEvent(_Event):
    """What the kernel executes; not told of silent executions."""

    type: Literal["code"]
    code: str
    execution_count: int | None


class StreamEvent(_Event):
    """Text on stdout or stderr."""

    type: Literal["stream"]
    name: str
    text: str


class DisplayEvent(_Event):
    """Something to show."""

    type: Literal["display"]
    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str | None


class UpdateDisplayEvent(_Event):
    """Something to show in the place of what has this `display_id`."""

    type: Literal["update_display"]
    data: dict[str, Any]
    metadata: dict[str, Any]
    display_id: str | None
    executions: list[str] = Field(
        description="Other executions with such an output, which is changed there as well."
    )


class ResultEvent(_Event):
    """The value of the code."""

    type: Literal["result"]
    data: dict[str, Any]
    metadata: dict[str, Any]
    execution_count: int | None


class ErrorEvent(_Event):
    """The code has failed."""

    type: Literal["error"]
    ename: str
    evalue: str
    traceback: list[str]


class ClearOutputEvent(_Event):
    """All output so far is to be cleared: now, or at the next output if `wait`."""

    type: Literal["clear_output"]
    wait: bool


class InputRequestEvent(_Event):
    """The code asks its user for a line."""

    type: Literal["input_request"]
    id: str = Field(description="By which an answer names it.")
    prompt: str
    password: bool


class StepEvent(_Event):
    """Something was done to the execution from outside."""

    type: Literal["step"]
    step: StepName
    time: str
    detail: str


class GapEvent(_Event):
    """So much of the kernel's log is gone, up to the number `seq`."""

    type: Literal["gap"]
    messages: int
    bytes: int


class EndedEvent(_Event):
    """It has ended. Always the last event."""

    type: Literal["ended"]
    time: str
    state: State
    reason: str | None
    execution_count: int | None
    seconds: float | None


class ClosingEvent(_Event):
    """The stream ends, and what it is of goes on: come back with the last number."""

    type: Literal["closing"]
    reason: str


class ExecutionEventModel(
    RootModel[
        Annotated[
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
            | ClosingEvent,
            Field(discriminator="type"),
        ]
    ]
):
    """Something that happens to an execution. In a stream, one event a line or a `data` field."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"type": "stream", "seq": 9, "name": "stdout", "text": "working\n"}]
        }
    )


class MessageEvent(_Event):
    """A message of the kernel's."""

    type: Literal["message"]
    channel: str = Field(examples=["iopub", "shell"])
    session: str | None = Field(description="The session that it is for; null: all; empty: none.")
    header: dict[str, Any]
    parent_header: dict[str, Any]
    metadata: dict[str, Any]
    content: dict[str, Any]
    buffers: list[str] = Field(description="In base64.")


class MessagesModel(BaseModel):
    """A page of a kernel's log."""

    epoch: str = Field(
        description="Of the log: numbers of another epoch mean nothing here. Give it back as "
        "`epoch`, and a stale number is an error."
    )
    first: int = Field(description="The oldest number that is kept.")
    next: int = Field(description="The `after` of the next page.")
    last: int = Field(description="The newest number there is; 0 for none.")
    gap: GapEvent | None = Field(description="What is gone before these messages.")
    messages: list[MessageEvent]


class LogEventModel(
    RootModel[Annotated[MessageEvent | GapEvent | ClosingEvent, Field(discriminator="type")]]
):
    """Something that a stream of a kernel's log consists of."""
