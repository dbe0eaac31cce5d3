"""The bodies of requests."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    model_validator,
)

from ..managers.errors import FieldNotUpdatable, InvalidEvent, InvalidRequest, MissingField
from ..options import MAX_EXECUTION_SECONDS
from .identity import UPDATABLE_FIELDS

__all__ = [
    "CancelExecution",
    "InputModel",
    "PostEvent",
    "RunCode",
    "StartKernel",
    "StartSession",
    "UpdateMe",
    "UpdateSession",
]


def _whole(text: str) -> str:
    """Refuse a lone surrogate: JSON can escape one, but it can be neither stored nor sent."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("is not valid Unicode") from None
    return text


Text = Annotated[str, AfterValidator(_whole)]

MAX_NAME_BYTES: Final = 4096


def _short(text: str) -> str:
    if len(text.encode()) > MAX_NAME_BYTES:
        raise ValueError(f"is longer than {MAX_NAME_BYTES} bytes")
    return text


Name = Annotated[Text, AfterValidator(_short)]
"""A text of bounded length, for what is stored and listed as long as a session or kernel exists."""


def _storable(text: str) -> str:
    if "\0" in text:  # which PostgreSQL stores in no text
        raise ValueError("holds a NUL character")
    return text


SessionType = Annotated[Name, AfterValidator(_storable)]


MAX_ENGINE_OPTIONS: Final = 64
"""How many options of an engine a start may have."""


def _option_value(value: object) -> object:
    if isinstance(value, str):
        return _short(_whole(value))
    is_odd = isinstance(value, float) and not math.isfinite(value)
    if is_odd or not isinstance(value, bool | int | float):
        raise ValueError("must be a text, a number, true or false")
    return value


# One validator, as the errors of a union name its members, too.
OptionValue = Annotated[
    bool | int | float | str,
    PlainValidator(_option_value, json_schema_input_type=bool | int | float | str),
]

EngineOptions = Annotated[
    dict[Name, OptionValue],
    Field(
        max_length=MAX_ENGINE_OPTIONS,
        description="Options of the engine that the kernel runs on, where its kernelspec lets "
        "whoever starts it set them (`caller_may_set`): a name with a dot is one in a table, like "
        "`limits.memory`.",
        examples=[{"memory": "4GiB", "cpus": 2}],
    ),
]


MAX_QUEUE_NAME: Final = 100
"""Characters that the name of a queue may have."""


def example(**fields: Any) -> ConfigDict:
    """The configuration of a model that has an example in the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


class Exact(BaseModel):
    """A body of this API alone: no client of another server sends more fields, or other types."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class StartKernel(BaseModel):
    """How to start a kernel. Every field may be left out, and so may the body."""

    model_config = example(name="python3", path="notebooks", env={"KERNEL_USERNAME": "ada"})

    name: Name | None = Field(
        None, description="A kernelspec's name; the server's default if none."
    )
    path: Name | None = Field(
        None,
        description="The directory it works in, relative to the server's root directory; of a file "
        "or a directory that does not exist, the nearest parent that does.",
    )
    env: dict[str, str] | None = Field(
        None, description="Variables added to the environment of its process."
    )
    kernel_id: str | None = Field(
        None,
        description="A UUID to use as its id. If a kernel has it already, that one is returned.",
    )
    engine_options: EngineOptions | None = None
    connection_file: str | None = Field(
        None,
        description="Of a kernel that runs already, in the server's directory for such files: it "
        "is used as it is, none is started, and what else is said here does not matter.",
    )
    owned: bool | None = Field(
        None,
        strict=True,
        description="Whether the kernel of `connection_file` may be ended here: when it is shut "
        "down. Otherwise it is only forgotten then.",
    )


class KernelChoice(BaseModel):
    """Which kernel a session gets."""

    id: Text | None = Field(None, description="A kernel's id. It counts more than the name.")
    name: Text | None = Field(
        None, description="A kernelspec's name; the server's default if none."
    )
    engine_options: EngineOptions | None = None


class NotebookPath(BaseModel):
    """The older form of a session's path."""

    path: Name | None = None
    name: Name | None = None


class StartSession(BaseModel):
    """A session to make."""

    model_config = example(
        path="notebooks/first.ipynb",
        name="first.ipynb",
        type="notebook",
        kernel={"name": "python3"},
    )

    path: Name = Field(
        description="The path of its document. Its directory, or the nearest parent that exists, "
        "is where the kernel works."
    )
    type: SessionType = Field(description="What it is.", examples=["notebook", "console", "file"])
    name: Name | None = Field(None, description="What to call it.")
    # A factory, and no default of None: the field may be left out, but null is refused.
    kernel: KernelChoice = Field(
        default_factory=KernelChoice,
        description="The kernel to attach it to, or to start: under this id, if there is none yet.",
    )
    notebook: NotebookPath = Field(
        default_factory=NotebookPath,
        deprecated=True,
        description="Sets the type `notebook` and the path: to its `name`, or else its `path`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        if "notebook" in data:
            data = _modern(data)
        for field in ("path", "type"):
            if field not in data:
                raise MissingField(field)
        return data


def _modern(data: dict[str, Any]) -> dict[str, Any]:
    """The body of an old client in today's form."""
    data = {**data}
    if isinstance(data.get("type", ""), str):  # any other value stays, and is refused
        data["type"] = "notebook"
    notebook, kernel = data["notebook"], data.get("kernel")
    if isinstance(notebook, dict):
        path = notebook.get("name", notebook.get("path"))
        if path is not None:
            data["path"] = path
    # Old clients send kernel ids that are no UUIDs; servers have always ignored those.
    if isinstance(kernel, dict) and not _is_uuid(kernel.get("id")):
        data["kernel"] = {**kernel, "id": None}
    return data


def _is_uuid(value: object) -> bool:
    try:
        return bool(UUID(value)) if isinstance(value, str) else False
    except ValueError:
        return False


class UpdateSession(BaseModel):
    """What to change of a session. What is left out stays as it is."""

    model_config = example(path="notebooks/renamed.ipynb", name="renamed.ipynb")

    path: Name = Field(default_factory=str, description="The new path.")
    name: Name | None = Field(None, description="What to call it; null for nothing.")
    type: SessionType = Field(default_factory=str, description="What it is.")
    kernel: KernelChoice = Field(
        default_factory=KernelChoice,
        description="A running kernel's id, or the name of a kernelspec to start a new kernel of.",
    )
    notebook: NotebookPath = Field(
        default_factory=NotebookPath,
        deprecated=True,
        description="Sets the type `notebook` and the path to its `path`.",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_notebook(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("notebook"), dict):
            path = data["notebook"].get("path")
            if path is not None:
                return {**data, "type": "notebook", "path": path}
        return data

    @property
    def changes(self) -> dict[str, str | None]:
        """The new values of what was given, beside the kernel."""
        return self.model_dump(include={"path", "name", "type"}, exclude_unset=True)


class UpdateMe(BaseModel):
    """How the user wants to be called; at least one of these."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"display_name": "Ada", "color": "#0a7"}],
            "minProperties": 1,
            "additionalProperties": False,
        }
    )

    name: Text = Field(default_factory=str)
    display_name: Text = Field(default_factory=str)
    initials: Text | None = None
    avatar_url: Text | None = None
    color: Text | None = None

    @model_validator(mode="before")
    @classmethod
    def _only_updatable(cls, data: Any) -> Any:
        if isinstance(data, dict):
            if not data:
                raise InvalidRequest("Invalid or missing JSON body")
            for field in data:
                if field not in UPDATABLE_FIELDS:
                    raise FieldNotUpdatable(field)
        return data


TIMESTAMP_FORMAT: Final = "%Y-%m-%dT%H:%M:%S%zZ"
"""The format of a posted event's timestamp: with an offset, and a Z, which Jupyter servers want."""


class PostEvent(BaseModel):
    """An event to tell."""

    model_config = example(
        schema_id="https://events.jupyter.org/jupyter_server/kernel_actions/v1",
        version="1",
        data={
            "action": "start",
            "kernel_id": "3d1f5a2e-8c0b-4a57-9a53-6a0c0d5a7e11",
            "kernel_name": "python3",
            "status": "success",
            "msg": "Kernel started",
        },
    )

    schema_id: str = Field(
        description="The id of a schema that this server knows.",
        examples=["https://events.jupyter.org/jupyter_server/kernel_actions/v1"],
    )
    version: str | int = Field(description="The version of the schema.", examples=["1"])
    data: dict[str, Any] = Field(description="What the schema says.")
    timestamp: str | None = Field(
        None,
        description=f"When it happened, `{TIMESTAMP_FORMAT}`; now, if it is left out.",
        examples=["2022-05-26T13:50:00+05:00Z"],
    )

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for field in ("schema_id", "version", "data"):
                if field not in data:
                    raise InvalidEvent(f"Missing `{field}` in the JSON request body.")
        return data

    @property
    def moment(self) -> datetime | None:
        """The timestamp, if there is one. Raises `InvalidEvent`."""
        if self.timestamp is None:
            return None
        try:
            return datetime.strptime(self.timestamp, TIMESTAMP_FORMAT)
        except ValueError:
            raise InvalidEvent(
                "Failed to parse timestamp from JSON request body, an ISO format datetime string "
                "with UTC offset is expected, for example, 2022-05-26T13:50:00+05:00Z"
            ) from None


class RunCode(Exact):
    """Code to execute."""

    model_config = example(code="6 * 7", timeout=60)

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


class CancelExecution(Exact):
    """How to cancel."""

    model_config = example(kill_after=30)

    kill_after: float | None = Field(
        None,
        ge=0,
        le=MAX_EXECUTION_SECONDS,
        description="Seconds after the interrupt when the kernel's process is killed, if the "
        "execution still runs.",
    )


class InputModel(Exact):
    """An answer to `input()`."""

    model_config = example(value="Ada")

    value: Text = Field(description="The line, without its end.")
    prompt: Text | None = Field(
        None,
        description="The `id` of the `input_request` that it answers; refused if the execution "
        "asks something else by now.",
    )
