"""The bodies of requests and responses, as the OpenAPI document shows them."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "ErrorModel",
    "KernelModel",
    "KernelSpecFile",
    "KernelSpecModel",
    "KernelSpecs",
    "StartKernel",
    "StatusModel",
    "VersionModel",
]


class ErrorModel(BaseModel):
    """What every error response holds."""

    message: str = Field(description="What is wrong, for people.")
    reason: str | None = Field(description="Always null; Jupyter clients look for it.")
    code: str = Field(description="What is wrong, for programs; it does not change.")


class VersionModel(BaseModel):
    """The server's version."""

    version: str


class StatusModel(BaseModel):
    """What the server is doing."""

    connections: int = Field(description="Open channel WebSockets on all kernels.")
    kernels: int = Field(description="How many kernels there are.")
    last_activity: str = Field(description="When a kernel or the API was last used, UTC.")
    started: str = Field(description="When the server was started, UTC.")


class KernelModel(BaseModel):
    """A kernel."""

    id: str = Field(description="The kernel's id, a UUID.")
    name: str = Field(description="The name of its kernelspec, as it was asked for.")
    last_activity: str = Field(
        description="When it was last used: UTC, `%Y-%m-%dT%H:%M:%S.%fZ`.",
        examples=["2026-11-22T14:49:48.797413Z"],
    )
    execution_state: str = Field(
        description="`starting`, `idle`, `busy`, `restarting`, `terminating`, `dead`, or what "
        "else the kernel has reported.",
        examples=["idle"],
    )
    connections: int = Field(description="Open channel WebSockets.")
    reason: str | None = Field(
        None, description="Why it is dead, or was restarted; absent when there is nothing to say."
    )


class StartKernel(BaseModel):
    """How to start a kernel. Every field may be left out, and so may the body."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"name": "python3", "path": "notebooks", "env": {"KERNEL_USERNAME": "ada"}}
            ]
        }
    )

    name: str | None = Field(None, description="A kernelspec's name; the server's default if none.")
    path: str | None = Field(
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
    """Every kernelspec that can be read."""

    default: str = Field(description="The name of the one that is started when none is named.")
    kernelspecs: dict[str, KernelSpecModel]
