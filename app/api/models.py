"""The bodies of requests and responses, as the OpenAPI document shows them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Final
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from ..managers.errors import FieldNotUpdatable, InvalidEvent, InvalidRequest, MissingField
from .identity import UPDATABLE_FIELDS

__all__ = [
    "CheckpointModel",
    "ContentsModel",
    "ErrorModel",
    "IdentityModel",
    "KernelModel",
    "KernelSpecFile",
    "KernelSpecModel",
    "KernelSpecs",
    "MeModel",
    "PostEvent",
    "ResolutionModel",
    "SessionModel",
    "StartKernel",
    "StartSession",
    "StatusModel",
    "UpdateMe",
    "UpdateSession",
    "UpdatedMe",
    "VersionModel",
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


def example(**fields: Any) -> ConfigDict:
    """The configuration of a model that has an example in the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": [fields]})


class ErrorModel(BaseModel):
    """What every error response holds."""

    model_config = example(
        message="Kernel does not exist: 3d1f5a2e-8c0b-4a57-9a53-6a0c0d5a7e11",
        reason=None,
        code="kernel_not_found",
    )

    message: str = Field(description="What is wrong, for people.")
    reason: str | None = Field(
        description="Null but for some errors of contents: `bad type`, `bad format`."
    )
    code: str = Field(description="What is wrong, for programs; it does not change.")
    short_message: str | None = Field(
        None,
        description="The message in a few words; only with status 501 and `kernelspec_invalid`.",
    )


class VersionModel(BaseModel):
    """The server's version."""

    version: str


class StatusModel(BaseModel):
    """What the server is doing."""

    connections: int = Field(description="Open channel WebSockets on all kernels.")
    kernels: int = Field(description="How many kernels there are.")
    last_activity: str = Field(description="When a kernel or the API was last used, UTC.")
    started: str = Field(description="When the server was started, UTC.")


class RestartsModel(BaseModel):
    """How often a kernel that died was restarted, and what is known of the last time."""

    count: int = Field(description="How often.")
    last: str = Field(description="When it died last, UTC.")
    reason: str = Field(description="Why: how its process ended, and the last that it wrote.")


class KernelModel(BaseModel):
    """A kernel."""

    model_config = example(
        id="3d1f5a2e-8c0b-4a57-9a53-6a0c0d5a7e11",
        name="python3",
        last_activity="2026-11-22T14:49:48.797413Z",
        execution_state="idle",
        connections=1,
        generation=1,
    )

    id: str = Field(description="The kernel's id, a UUID.")
    name: str = Field(description="The name of its kernelspec, as it was asked for.")
    last_activity: str = Field(
        description="When it was last used: UTC, `%Y-%m-%dT%H:%M:%S.%fZ`.",
        examples=["2026-11-22T14:49:48.797413Z"],
    )
    execution_state: str = Field(
        description="`starting`, `idle`, `busy`, `restarting`, `terminating`, `dead`, `unknown` "
        "(it may run, and cannot be reached), or what else the kernel has reported.",
        examples=["idle"],
    )
    connections: int = Field(description="Open channel WebSockets.")
    generation: int = Field(
        description="Which of its processes this is, from 1: one more after each restart, by "
        "itself or asked for. What code has defined is lost then. 0 before the first is launched."
    )
    reason: str | None = Field(
        None,
        description="Why it is dead, has no process just now, could not be stopped or cannot be "
        "reached; absent when there is nothing to say.",
    )
    restarts: RestartsModel | None = Field(
        None,
        description="Its restarts after deaths, that it got by itself; absent when there was none.",
    )


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


class KernelSpecFile(BaseModel):
    """The contents of a `kernel.json`."""

    argv: list[str]
    env: dict[str, Any]
    display_name: str
    language: str
    interrupt_mode: str
    metadata: dict[str, Any]
    kernel_protocol_version: str


class KernelSpecModel(BaseModel):
    """A kernelspec: a kind of kernel that can be started."""

    name: str
    spec: KernelSpecFile
    resources: dict[str, str] = Field(
        description="Its logos and scripts, by name, with their URLs."
    )


class KernelSpecs(BaseModel):
    """Every kernelspec that is not broken."""

    default: str = Field(description="The name of the one that is started when none is named.")
    kernelspecs: dict[str, KernelSpecModel]


class SessionNotebook(BaseModel):
    """The older form of a session's path and name."""

    path: str
    name: str


class SessionModel(BaseModel):
    """A session: a document or a console, and its kernel."""

    id: str = Field(description="The session's id, a UUID.")
    path: str = Field(description="The path of its document, or what else a client calls it by.")
    name: str = Field(description="The name it was given; empty if none was.")
    type: str = Field(description="What it is.", examples=["notebook", "console", "file"])
    kernel: KernelModel
    notebook: SessionNotebook | None = Field(
        None, deprecated=True, description="Only of the type `notebook`."
    )


class KernelChoice(BaseModel):
    """Which kernel a session gets."""

    id: Text | None = Field(None, description="A kernel's id. It counts more than the name.")
    name: Text | None = Field(
        None, description="A kernelspec's name; the server's default if none."
    )


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
    type: Name = Field(description="What it is.", examples=["notebook", "console", "file"])
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
    type: Name = Field(default_factory=str, description="What it is.")
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


class IdentityModel(BaseModel):
    """Who the user is."""

    username: str = Field(description="It does not change.")
    name: str
    display_name: str
    initials: str | None
    avatar_url: str | None
    color: str | None


class MeModel(BaseModel):
    """The user, and what it may do."""

    identity: IdentityModel
    permissions: dict[str, list[str]] = Field(
        description="Of what was asked for, the actions that are allowed; and `updatable_fields`, "
        "what of the identity can be changed."
    )


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


class UpdatedMe(BaseModel):
    """The user, changed."""

    status: str = Field(examples=["success"])
    identity: IdentityModel


class ResolvedPathModel(BaseModel):
    """Where a path leads to."""

    scope: str = Field(
        description="`server`: below its root directory. `kernel`: on the kernel's machine."
    )
    path: str


class UnresolvedScopeModel(BaseModel):
    """Where it could not be looked for."""

    scope: str
    reason: str


class ResolutionModel(BaseModel):
    """What a path leads to."""

    resolved: list[ResolvedPathModel]
    unresolved: list[UnresolvedScopeModel] | None = Field(
        None, description="Only when there is something."
    )


TIMESTAMP_FORMAT: Final = "%Y-%m-%dT%H:%M:%S%zZ"
"""Of an event that is posted: an offset and, as Jupyter servers want it, a Z as well."""


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


class ContentsModel(BaseModel):
    """A file, a notebook or a directory."""

    model_config = example(
        name="notes.txt",
        path="work/notes.txt",
        last_modified="2026-11-22T14:49:48.797413Z",
        created="2026-11-22T14:49:48.797413Z",
        type="file",
        size=5,
        writable=True,
        mimetype="text/plain",
        format="text",
        content="hello",
        hash=None,
        hash_algorithm=None,
    )

    name: str = Field(description="The last part of its path.")
    path: str = Field(description="Where it is, relative to the root directory.")
    last_modified: str = Field(description="When its content was last changed, UTC.")
    created: str = Field(description="When it was made, as far as that is known, UTC.")
    type: str = Field(description="`file`, `notebook` or `directory`.")
    size: int | None = Field(description="In bytes; null for a directory.")
    writable: bool = Field(description="Whether the server may change it.")
    mimetype: str | None = Field(description="Of a file, if it is known.")
    format: str | None = Field(
        description="Of the content: `text`, `base64` or `json`; null where there is none."
    )
    content: Any = Field(
        description="A text, base64, a notebook, or a directory's models; null if not asked for."
    )
    hash: str | None = Field(description="Of the file's bytes, in hex, if asked for.")
    hash_algorithm: str | None = Field(description="`sha256` where there is a hash.")
    message: str | None = Field(
        None, description="What is wrong with a notebook that is not as its schema says."
    )


class CheckpointModel(BaseModel):
    """A copy of a file that can be restored."""

    id: str
    last_modified: str = Field(description="When the copy was made, UTC.")
