"""What Docker and podman say, in words for people: how a container ended, what is wrong with it."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..hosts.errors import (
    HostFull,
    HostUnreachable,
    HostUnusable,
    HostWithoutPython,
    JobOutOfMemory,
)
from ..hosts.pythons import MARK
from .engine import Job, JobState

__all__ = [
    "GENERATION",
    "IMAGE_ABSENT",
    "KEEPER",
    "KERNEL",
    "OWNER",
    "SERVICE",
    "Pull",
    "job_of",
    "refused",
    "why_ended",
]

SERVICE: Final = "org.kernelkeep.service"
KEEPER: Final = "org.kernelkeep.keeper"
KERNEL: Final = "org.kernelkeep.kernel"
OWNER: Final = "org.kernelkeep.owner"
GENERATION: Final = "org.kernelkeep.generation"

IMAGE_ABSENT: Final = 404

_NO_PROGRAM: Final = re.compile(r"executable file .*not found|no such file or directory", re.I)
_FULL: Final = re.compile(r"no space left on device|disk quota exceeded", re.I)
_ERRORS: Final = {error.code: error for error in (HostUnreachable, HostUnusable, HostWithoutPython)}

_WORDS: Final = 2000
"""How many characters of an engine's are told."""


class _Told(msgspec.Struct):
    failed: str
    text: str


def job_of(found: Mapping[str, Any]) -> Job | None:
    """The job that a container of a list is, or that which an event tells of; None for no job."""
    labels = found.get("Labels") or {}
    try:
        keeper_id, generation = str(labels[KEEPER]), int(labels[GENERATION])
    except (KeyError, ValueError):
        return None
    # One that was created and does not run will not: its stdin was never given to it.
    is_alive = found.get("State") in ("running", "paused", "restarting", "removing", "stopping")
    state = JobState.RUNNING if is_alive else JobState.ENDED
    words = "its container is paused" if found.get("State") == "paused" else ""
    return Job(str(found["Id"]), keeper_id, generation, state, words)


def refused(message: str, image: str, python: str) -> HostUnusable:
    """Why a container could not be made or started, by what the engine says."""
    text = message.strip()[:_WORDS]
    if python in text and _NO_PROGRAM.search(text):
        return HostWithoutPython(f"The image {image} has no {python}: {text}")
    if _FULL.search(text):
        return HostFull(f"The engine has no room: {text}")
    return HostUnusable(f"The engine refuses the container: {text}")


def why_ended(container: Mapping[str, Any], said: str) -> HostUnusable:
    """How a container ended, by what the engine tells of it, and what it ``said`` last."""
    for line in said.splitlines():
        if line.startswith(MARK):
            try:
                told = msgspec.json.decode(line.removeprefix(MARK), type=_Told)
            except msgspec.MsgspecError:
                continue
            return _ERRORS.get(told.failed, HostUnusable)(told.text)
    state = container.get("State") or {}
    limit = (container.get("HostConfig") or {}).get("Memory") or 0
    if state.get("OOMKilled"):
        most = f": it may take {limit / 2**20:.10g} MiB" if limit else ""
        return JobOutOfMemory(f"The container was killed for want of memory{most}")
    text = f"The container {_exit(state)}"
    if error := str(state.get("Error") or ""):
        text += f" ({error[:_WORDS]})"
    return HostUnusable(f"{text}. The last it wrote:\n{said}" if said else text)


def _exit(state: Mapping[str, Any]) -> str:
    code = state.get("ExitCode")
    if state.get("Status") == "created":
        return "was made and never started"
    if not isinstance(code, int):
        return "has ended"
    try:
        name = signal.Signals(code - 128).name
    except ValueError:
        return f"ended with status {code}"
    return f"was killed by signal {code - 128} ({name})"


class Pull:
    """How far an image is that is pulled."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._layers: dict[str, tuple[int, int]] = {}

    def on_progress(self, told: Mapping[str, Any]) -> str:
        """What is known now, when the engine has told more."""
        detail = told.get("progressDetail") or {}
        layer, done, size = told.get("id"), detail.get("current"), detail.get("total")
        if isinstance(layer, str) and isinstance(done, int) and isinstance(size, int) and size > 0:
            self._layers[layer] = (min(done, size), size)
        whole = sum(size for _, size in self._layers.values())
        if not whole:
            return f"The image {self._image} is pulled"
        done = sum(done for done, _ in self._layers.values())
        return (
            f"The image {self._image} is pulled: {done / 2**20:.0f} of {whole / 2**20:.0f} MiB "
            "that are known of"
        )
