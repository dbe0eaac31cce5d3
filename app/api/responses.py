"""What the OpenAPI document says of responses beyond the Structs that are answered.

`schema_of` makes the other schemas from those.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from msgspec import Struct
from pydantic import BaseModel, ConfigDict, Field

from ..managers.executions.results import ExecutionResultModel
from ..managers.files.models import ContentsModel
from ..managers.kernels.model import KernelModel
from ..managers.kernels.overview import GoneEvent, KernelEvent
from ..managers.limits.limits import Limits
from ..managers.sessions.sessions import SessionModel
from ..managers.state import Restarts
from .identity import Identity

__all__ = [
    "CONTENTS",
    "EXAMPLES",
    "NAMES",
    "OPTIONAL",
    "ErrorModel",
    "ReplicaModel",
    "StatusModel",
    "VersionModel",
]


class ErrorModel(BaseModel):
    """What every error response holds."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "message": "Kernel does not exist: 3d1f5a2e-8c0b-4a57-9a53-6a0c0d5a7e11",
                    "reason": None,
                    "code": "kernel_not_found",
                }
            ]
        }
    )

    message: str = Field(description="What is wrong, for people.")
    reason: str | None = Field(
        description="Null but for some errors of contents: `bad type`, `bad format`."
    )
    code: str = Field(description="What is wrong, for programs; it does not change.")
    cause: str | None = Field(
        None, description="The code of the error beneath, when a kernel cannot be started."
    )
    short_message: str | None = Field(
        None,
        description="The message in a few words; only with status 501 and `kernelspec_invalid`.",
    )
    option: str | None = Field(
        None, description="The option of `engine_options` that is refused, if one is."
    )
    limit: str | None = Field(
        None, description="The limit of the owner that stands in the way, if one does."
    )
    value: float | None = Field(None, description="That limit's value.")
    usage: float | None = Field(
        None, description="What is used of that limit; with 403, what this alone would take."
    )


class VersionModel(BaseModel):
    """The server's version."""

    version: str


class ReplicaModel(BaseModel):
    """One of the servers that share a registry."""

    id: str = Field(description="Of the process: another one has another id.")
    asked: bool = Field(description="Whether it is the one that answers.")
    state: Literal["joined", "declared_dead", "unknown"] = Field(
        description="`joined`: it has its place among the others. `declared_dead`: the others have "
        "taken the kernels of the one that answers. `unknown`: the registry is silent."
    )
    kernels: int = Field(description="How many of the caller's kernels it has.")


class StatusModel(BaseModel):
    """What the server is doing."""

    connections: int = Field(description="Open channel WebSockets on all kernels.")
    kernels: int = Field(description="How many kernels there are.")
    last_activity: str = Field(description="When a kernel or the API was last used, UTC.")
    started: str = Field(description="When the server was started, UTC.")
    replicas: list[ReplicaModel] = Field(
        default=[], description="The servers that share a registry; left out where there is one."
    )


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

NAMES: Final[dict[type[Struct], str]] = {
    Identity: "IdentityModel",
    Restarts: "RestartsModel",
    Limits: "LimitsModel",
}
"""The names that Structs have in the document, where those are not their own."""

CONTENTS: Final[dict[tuple[type[Struct], str], Any]] = {
    (ExecutionResultModel, "outputs"): list[Output],
    (SessionModel, "kernel"): KernelModel,
    (KernelEvent, "kernel"): KernelModel,
    (GoneEvent, "kernel"): KernelModel | None,
}
"""The types of fields that the Structs themselves do not tell."""

OPTIONAL: Final = frozenset({"seq"})
"""Fields that are always there, and that the document has never promised to clients."""

EXAMPLES: Final[dict[type[Struct], dict[str, Any]]] = {
    KernelModel: {
        "id": "3d1f5a2e-8c0b-4a57-9a53-6a0c0d5a7e11",
        "name": "python3",
        "last_activity": "2026-11-22T14:49:48.797413Z",
        "execution_state": "idle",
        "connections": 1,
        "generation": 1,
    },
    ContentsModel: {
        "name": "notes.txt",
        "path": "work/notes.txt",
        "last_modified": "2026-11-22T14:49:48.797413Z",
        "created": "2026-11-22T14:49:48.797413Z",
        "type": "file",
        "size": 5,
        "writable": True,
        "mimetype": "text/plain",
        "format": "text",
        "content": "hello",
        "hash": None,
        "hash_algorithm": None,
    },
    ExecutionResultModel: {
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
    },
}
