"""What Docker and podman say of containers, in words for people: why one ended or was refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ..hosts.errors import HostFull, HostUnusable, HostWithoutPython, JobOutOfMemory
from .engine import Job, JobState
from .last_words import WORDS, is_full, is_without_program, own_word, with_exit

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


def job_of(found: Mapping[str, Any]) -> Job | None:
    """The job of a container, as the API lists it; None if it has not the labels of a job."""
    labels = found.get("Labels") or {}
    try:
        keeper_id, generation = str(labels[KEEPER]), int(labels[GENERATION])
    except (KeyError, ValueError):
        return None
    # A container that was created and does not run never will: it was never given its stdin.
    is_alive = found.get("State") in ("running", "paused", "restarting", "removing", "stopping")
    state = JobState.RUNNING if is_alive else JobState.ENDED
    words = "its container is paused" if found.get("State") == "paused" else ""
    return Job(str(found["Id"]), keeper_id, generation, state, words)


def refused(message: str, image: str, python: str) -> HostUnusable:
    """The error for a container that the engine has not made or started, by its ``message``."""
    text = message.strip()[:WORDS]
    if python in text and is_without_program(text):
        return HostWithoutPython(f"The image {image} has no {python}: {text}")
    if is_full(text):
        return HostFull(f"The engine has no room: {text}")
    return HostUnusable(f"The engine refuses the container: {text}")


def why_ended(container: Mapping[str, Any], said: str) -> HostUnusable:
    """The error that tells how a container ended.

    ``container`` is the engine's description of it, and ``said`` the last of its output.
    """
    if told := own_word(said):
        return told
    state = container.get("State") or {}
    limit = (container.get("HostConfig") or {}).get("Memory") or 0
    if state.get("OOMKilled"):
        most = f": it may take {limit / 2**20:.10g} MiB" if limit else ""
        return JobOutOfMemory(f"The container was killed for want of memory{most}")
    is_unused = state.get("Status") == "created"  # its ExitCode is 0 then
    end = "was made and never started" if is_unused else with_exit(state.get("ExitCode"))
    text = f"The container {end}"
    if error := str(state.get("Error") or ""):
        text += f" ({error[:WORDS]})"
    return HostUnusable(f"{text}. The last it wrote:\n{said[-WORDS:]}" if said else text)


class Pull:
    """The progress of an image that is being pulled."""

    def __init__(self, image: str) -> None:
        self._image = image
        self._layers: dict[str, tuple[int, int]] = {}

    def on_progress(self, told: Mapping[str, Any]) -> str:
        """Take a message of the engine about the pull; returns the progress, for people."""
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
