"""What Kubernetes says of pods, in words for people: why a pod waits, fails to start, or ended.

Objects of the API server are not trusted: any field may be absent, or of another type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from ..hosts.errors import (
    HostFull,
    HostUnusable,
    HostWithoutPython,
    ImageUnusable,
    JobEvicted,
    JobNotStarted,
    JobOutOfMemory,
    QuotaMet,
)
from .docker_words import GENERATION, KEEPER, OWNER
from .engine import Job, JobState
from .last_words import WORDS, is_full, is_without_program, own_word, with_exit

__all__ = [
    "Answer",
    "Sight",
    "job_of",
    "refused",
    "seen",
    "text_of",
    "why_ended",
    "why_not_begun",
]

Pod = Mapping[str, Any]


class Answer(NamedTuple):
    """An answer of the API server: the HTTP status, and the object in the body."""

    status: int
    body: dict[str, Any]

    @property
    def message(self) -> str:
        """The message of a Status object, or the HTTP status as a text."""
        return text_of(self.body.get("message")) or f"status {self.status}"


class Sight(NamedTuple):
    """The state of a pod, and what there is to tell people about it."""

    state: JobState
    words: str = ""
    trouble: str = ""
    """The API's word for what keeps the pod from running; empty for nothing, or a mere queue."""


_IMAGE: Final = frozenset(
    (
        *("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"),
        *("ImageInspectError", "RegistryUnavailable", "SignatureValidationFailed"),
    )
)
_CONTAINER: Final = frozenset(
    (
        *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
        *("CrashLoopBackOff", "PreCreateHookError", "PreStartHookError", "PostStartHookError"),
    )
)
_NOTHING: Final = frozenset(("ContainerCreating", "PodInitializing", ""))

HOPELESS: Final = frozenset(("InvalidImageName", "ErrImageNeverPull"))
"""Troubles that do not pass by themselves; others are given time (`Waits`)."""

_QUOTA: Final = re.compile(r"exceeded quota|quota exceeded", re.I)


def text_of(found: object) -> str:
    """A text of the API server in one line, of `WORDS` characters at most; empty for no text."""
    return " ".join(found.split())[:WORDS] if isinstance(found, str) else ""


def _map(found: object) -> Mapping[str, Any]:
    return found if isinstance(found, dict) else {}


def _maps(found: object) -> list[Mapping[str, Any]]:
    return [_map(each) for each in found] if isinstance(found, list) else []


def _conditions(status: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {str(each.get("type")): each for each in _maps(status.get("conditions"))}


def _container(pod: Pod) -> Mapping[str, Any]:
    """The status of the kernel's container, which is the first of the manifest's."""
    containers = _maps(_map(pod.get("spec")).get("containers"))
    name = containers[0].get("name") if containers else None
    statuses = _maps(_map(pod.get("status")).get("containerStatuses"))
    return next((each for each in statuses if each.get("name") == name), {})


def _now(container: Mapping[str, Any], state: str) -> Mapping[str, Any] | None:
    """The details of a container's present state, if that is ``state``; else None.

    The states are ``waiting``, ``running`` and ``terminated``.
    """
    found = _map(container.get("state"))
    return _map(found[state]) if state in found else None


# A pod that waits or runs


def job_of(pod: Pod, sight: Sight) -> Job | None:
    """The job of a pod; None for a pod without the labels of a job."""
    metadata = _map(pod.get("metadata"))
    labels = _map(metadata.get("labels"))
    try:
        keeper_id, generation = str(labels[KEEPER]), int(labels[GENERATION])
        named = (str(metadata["name"]), keeper_id, generation)
        return Job(*named, sight.state, sight.words, is_nobodys=OWNER not in labels)
    except (KeyError, ValueError):
        return None


def seen(pod: Pod, events: Sequence[Mapping[str, Any]] = ()) -> Sight:
    """The sight of a pod, by its own status and, if it waits, by its newest ``events``."""
    status = _map(pod.get("status"))
    phase = str(status.get("phase", "Pending"))
    container = _container(pod)
    runs = _now(container, "running") is not None
    if _now(container, "terminated") is not None:
        return Sight(JobState.ENDED)
    # A controller sets the phase of a pod whose node is away. If the container's status says that
    # it runs, that is the last word of its kubelet, and no end was seen (`_lost` has the words).
    if phase in ("Failed", "Succeeded") and not runs:
        return Sight(JobState.ENDED)
    if disruption := _disruption(pod):
        state = JobState.RUNNING if runs or phase != "Pending" else JobState.WAITING
        return Sight(state, disruption)
    if phase == "Pending":
        return _waiting(pod, status, container, events)
    return Sight(JobState.RUNNING, _lost(pod, status, container, phase))


def _disruption(pod: Pod) -> str:
    """Words for a pod that is about to be ended by the cluster or a person; empty if it is not."""
    status = _map(pod.get("status"))
    condition = _conditions(status).get("DisruptionTarget", {})
    message = text_of(condition.get("message"))
    if condition.get("status") == "True":
        reason = text_of(condition.get("reason"))
        return f"The pod is evicted ({reason})" + (f": {message}" if message else "")
    if _map(pod.get("metadata")).get("deletionTimestamp"):
        return "The pod is being deleted"
    return ""


def _lost(pod: Pod, status: Mapping[str, Any], container: Mapping[str, Any], phase: str) -> str:
    """Words for a pod whose node may be away, which says nothing about its process; or empty."""
    ready = _conditions(status).get("Ready", {})
    # A kubelet sets both at once: if they differ, a controller has set the one of the pod.
    away = container.get("ready") is True and ready.get("status") == "False"
    if phase in ("Unknown", "Failed") or away or status.get("reason") == "NodeLost":
        node = text_of(_map(pod.get("spec")).get("nodeName")) or "of the pod"
        return f"The node {node} is not ready, as the cluster says"
    return ""


def _waiting(
    pod: Pod,
    status: Mapping[str, Any],
    container: Mapping[str, Any],
    events: Sequence[Mapping[str, Any]],
) -> Sight:
    scheduled = _conditions(status).get("PodScheduled", {})
    if scheduled.get("status") == "False":
        reason = text_of(scheduled.get("reason")) or "not scheduled"
        message = text_of(scheduled.get("message"))
        return Sight(JobState.WAITING, f"The pod waits for a node: {reason}: {message}")
    for each in (*_maps(status.get("initContainerStatuses")), container):
        waiting = _now(each, "waiting") or {}
        reason = text_of(waiting.get("reason"))
        if reason not in _NOTHING:
            words = f"{_what(reason, each)} ({reason})"
            message = text_of(waiting.get("message"))
            return Sight(JobState.WAITING, f"{words}: {message}" if message else words, reason)
    node = text_of(_map(pod.get("spec")).get("nodeName"))
    words = f"The pod is prepared on {node}" if node else "The pod waits for a node"
    told = _newest(events)
    return Sight(JobState.WAITING, f"{words}: {told}" if told else words)


def _what(reason: str, container: Mapping[str, Any]) -> str:
    if reason in _IMAGE:
        return f"The image {text_of(container.get('image'))} cannot be had"
    if reason in _CONTAINER:
        return "The container cannot be started"
    return "The container waits"


def _newest(events: Sequence[Mapping[str, Any]]) -> str:
    """The newest warning among a pod's events, or else the newest event, as a text."""

    def when(event: Mapping[str, Any]) -> str:
        found = event.get("lastTimestamp") or event.get("eventTime") or event.get("firstTimestamp")
        return str(found or "")

    def rank(event: Mapping[str, Any]) -> tuple[bool, str]:
        return event.get("type") == "Warning", when(event)

    for event in sorted(events, key=rank, reverse=True):
        if message := text_of(event.get("message")):
            return f"{text_of(event.get('reason'))}: {message}"
    return ""


# A pod that has ended, or cannot begin


def why_ended(pod: Pod) -> HostUnusable:
    """The error that tells how a pod has ended."""
    status = _map(pod.get("status"))
    terminated = _now(_container(pod), "terminated") or {}
    said = str(terminated.get("message") or "").strip()[-WORDS:]
    if told := own_word(said):
        return told
    reason = text_of(terminated.get("reason"))
    if reason == "OOMKilled":
        return JobOutOfMemory(f"The container was killed for want of memory{_limit(pod)}")
    if reason in ("StartError", "ContainerCannotRun"):
        return _no_start(pod, said)
    if evicted := _evicted(pod, status):
        return JobEvicted(evicted)
    is_deleted = _map(pod.get("metadata")).get("deletionTimestamp")
    text = "The pod was deleted, and its container" if is_deleted else "The container"
    text += f" {with_exit(terminated.get('exitCode'))}"
    message = text_of(status.get("message"))
    if message:
        text += f" ({message})"
    return HostUnusable(f"{text}. The last it wrote:\n{said}" if said else text)


def why_not_begun(sight: Sight, seconds: float) -> HostUnusable:
    """The error for a pod that is given up, as it has waited for so many seconds."""
    if sight.trouble in _IMAGE:
        return ImageUnusable(sight.words)
    if sight.trouble:
        return HostUnusable(sight.words)
    return JobNotStarted(f"The pod did not start within {seconds:g} s. {sight.words}")


def _no_start(pod: Pod, said: str) -> HostUnusable:
    containers = _maps(_map(pod.get("spec")).get("containers"))
    command = (containers[0].get("command") if containers else None) or [""]
    image = containers[0].get("image") if containers else ""
    if str(command[0]) in said and is_without_program(said):
        return HostWithoutPython(f"The image {image} has no {command[0]}: {text_of(said)}")
    if is_full(said):
        return HostFull(f"The node has no room: {text_of(said)}")
    return HostUnusable(f"The container cannot be started: {text_of(said)}")


def _limit(pod: Pod) -> str:
    containers = _maps(_map(pod.get("spec")).get("containers"))
    limits = _map(_map(containers[0].get("resources")).get("limits")) if containers else {}
    return f": it may take {limits['memory']}" if "memory" in limits else ""


def _evicted(pod: Pod, status: Mapping[str, Any]) -> str:
    message = text_of(status.get("message"))
    if status.get("reason") in ("Evicted", "Preempting", "Terminated", "NodeShutdown"):
        return f"The pod was evicted: {message or status['reason']}"
    if status.get("reason") == "DeadlineExceeded":
        return f"The pod was ended: {message or 'its deadline has passed'}"
    if _conditions(status).get("DisruptionTarget", {}).get("status") == "True":
        return _disruption(pod).replace("is evicted", "was evicted")
    return ""


def refused(answer: Answer) -> HostUnusable:
    """The error for a pod or a secret that the API server has refused to create or change."""
    if answer.status == 403 and _QUOTA.search(answer.message):
        return QuotaMet(f"The quota of the namespace is met: {answer.message}")
    return HostUnusable(f"Kubernetes refuses the pod: {answer.message}")
