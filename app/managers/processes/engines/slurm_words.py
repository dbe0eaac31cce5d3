"""Slurm's output about jobs, read and put in words: why a job waits, when and how it ends."""

from __future__ import annotations

import pwd
import re
import signal
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from typing import Final, NamedTuple

from ..hosts.errors import (
    HostFull,
    HostUnreachable,
    HostUnusable,
    HostWithoutPython,
    JobEvicted,
    JobNotStarted,
    JobOutOfMemory,
    QuotaMet,
)
from .engine import JobState
from .last_words import WORDS, is_full, own_word
from .slurm_commands import Answer

__all__ = [
    "FORGOTTEN",
    "QUEUE_FIELDS",
    "RECORD_FIELDS",
    "Seen",
    "exit_of",
    "is_hopeless",
    "labels_of",
    "queued",
    "recorded",
    "refused",
    "sight",
    "why_ended",
    "why_not_begun",
]

QUEUE_FIELDS: Final = "%i|%T|%S|%e|%N|%m|%j|%r"
"""The fields that squeue is asked for (its ``--format``). The last one may have any character."""

RECORD_FIELDS: Final = "JobIDRaw,State,ExitCode,NodeList,JobName"
"""The fields that sacct is asked for."""

ANNOUNCED_SECONDS: Final = 600.0
"""How long before its time limit the end of a job is announced to the kernel's users."""

WAITING: Final = frozenset(
    ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT")
)
ENDED: Final = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT"),
    )
)
TOLD_BY_NODE: Final = frozenset(("COMPLETED", "FAILED", "OUT_OF_MEMORY"))

FORGOTTEN: Final = "FORGOTTEN"
"""A state that Slurm does not have: the job has left the queue, and no record tells how it ended.
"""

HOPELESS: Final = frozenset(
    (
        *("BadConstraints", "InvalidAccount", "InvalidQOS", "PartitionConfig"),
        *("PartitionNodeLimit", "PartitionTimeLimit", "AccountNotAllowed", "QOSNotAllowed"),
        *("AssocMaxCpuPerJobLimit", "AssocMaxMemPerJob", "AssocMaxWallDurationPerJobLimit"),
        *("QOSMaxCpuPerJobLimit", "QOSMaxMemoryPerJob", "QOSMaxWallDurationPerJobLimit"),
    )
)
"""Reasons for which a job waits for ever, whichever other jobs end."""

_QUOTA: Final = re.compile(r"accounting/QOS policy|temporarily unable to accept job", re.I)
_NO_PROGRAM: Final = (126, 127)


class Seen(NamedTuple):
    """A job as squeue or sacct tells it."""

    job_id: str
    name: str
    state: str
    starts: float | None = None
    """When it has started, or is expected to."""
    ends: float | None = None
    node: str = ""
    memory: str = ""
    reason: str = ""
    exit: tuple[int, int] | None = None
    """Its exit status, and the signal that has ended it."""
    by: int | None = None
    """The user who has cancelled it."""

    @property
    def is_over(self) -> bool:
        """Whether the controller says that it has ended, or does not know it any more."""
        return self.state in ENDED or self.state == FORGOTTEN

    @property
    def is_sure(self) -> bool:
        """Whether the job's node has said how the job has ended.

        Otherwise the controller says so, which may have given up a node that it does not reach.
        """
        return self.state in TOLD_BY_NODE


# Reading the output of Slurm's commands


def labels_of(name: str, prefix: str) -> tuple[str, int] | None:
    """The keeper and the generation of a job, by the job's name; None for a job of others."""
    if not name.startswith(prefix):
        return None
    keeper_id, _, generation = name.removeprefix(prefix).rpartition("-")
    if not keeper_id or not generation.isascii() or not generation.isdigit():
        return None
    return keeper_id, int(generation)


def queued(output: str, prefix: str) -> list[Seen]:
    """The jobs in the output of squeue whose names begin with ``prefix``, by their ids.

    Lines about other jobs are skipped, whatever they are.
    """
    found = []
    for line in output.splitlines():
        fields = line.split("|", 7)
        if len(fields) < 8 or labels_of(fields[6], prefix) is None or not fields[0].isdigit():
            continue
        job_id, state, starts, ends, node, memory, name, reason = fields
        times = (_moment(starts), _moment(ends))
        found.append(Seen(job_id, name, state, *times, _word(node), memory, _word(reason)))
    return sorted(found, key=lambda seen: int(seen.job_id))


def recorded(output: str, prefix: str) -> dict[str, Seen]:
    """The newest job of each name in the output of sacct, if the name begins with ``prefix``."""
    found: dict[str, Seen] = {}
    for line in output.splitlines():
        fields = line.split("|")
        if len(fields) < 5 or labels_of(fields[4], prefix) is None or not fields[0].isdigit():
            continue
        # "CANCELLED by 1000"
        state, _, by = fields[1].partition(" by ")
        user = int(by) if by.isdigit() else None
        told = re.fullmatch(r"(\d+):(\d+)", fields[2])
        code = (int(told[1]), int(told[2])) if told else None
        seen = Seen(fields[0], fields[4], state, node=_word(fields[3]), exit=code, by=user)
        before = found.get(seen.name)
        if before is None or int(before.job_id) < int(seen.job_id):
            found[seen.name] = seen
    return found


def exit_of(shown: str) -> tuple[int, int] | None:
    """The exit status and the signal of a job, as scontrol shows it."""
    told = re.search(r"(?<!\S)ExitCode=(\d+):(\d+)", shown)
    return (int(told[1]), int(told[2])) if told else None


def _moment(told: str) -> float | None:
    return float(told) if told.isascii() and told.isdigit() else None


def _word(told: str) -> str:
    told = " ".join(told.split()).strip("()")
    return "" if told in ("None", "null", "None assigned", "N/A") else told[:WORDS]


def _date(moment: float) -> str:
    try:
        return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, ValueError, OSError):
        return "some day"


# Saying what it means


def is_hopeless(seen: Seen) -> bool:
    """Whether a job waits for a reason that does not pass by itself (`HOPELESS`)."""
    return seen.state == "PENDING" and seen.reason in HOPELESS


def sight(seen: Seen, away: AbstractSet[str], now: float) -> tuple[JobState, str]:
    """The state of a job, and words about it for people, or none.

    ``away`` has the nodes that do not answer the controller; ``now`` is in seconds since the epoch.
    """
    if seen.is_over and not seen.is_sure:
        lost = away if seen.state == FORGOTTEN else away & {seen.node}
        return (JobState.RUNNING, _why_lost(seen, lost)) if lost else (JobState.ENDED, "")
    if seen.is_over:
        return JobState.ENDED, ""
    if seen.state in WAITING:
        return JobState.WAITING, _why_waiting(seen)
    if seen.state == "COMPLETING":
        text = "has reached its time limit" if seen.reason == "TimeLimit" else "is being ended"
        return JobState.RUNNING, f"The job {seen.job_id} {text}"
    if seen.state in ("SUSPENDED", "STOPPED"):
        return JobState.RUNNING, f"The job {seen.job_id} is suspended ({seen.state})"
    if seen.ends is not None and seen.ends - now <= ANNOUNCED_SECONDS:
        text = f"The job {seen.job_id} reaches its time limit at {_date(seen.ends)}"
        return JobState.RUNNING, f"{text}, and ends then"
    return JobState.RUNNING, ""


def _why_lost(seen: Seen, lost: AbstractSet[str]) -> str:
    """Why the processes of a job that is over may live: these nodes do not answer."""
    nodes = ", ".join(sorted(lost)[:3]) + (" and others" if len(lost) > 3 else "")
    if seen.state == FORGOTTEN:
        text = f"Slurm does not know the job any more, and does not reach {nodes}"
    else:
        text = (
            f"Slurm has given up the job {seen.job_id} ({seen.state}), and does not reach {nodes}"
        )
    return f"{text}: its processes may live there"


def _why_waiting(seen: Seen) -> str:
    if seen.state == "CONFIGURING":
        return f"The node of the job {seen.job_id} is being made ready"
    text = f"The job {seen.job_id} waits ({seen.reason or seen.state})"
    if seen.starts is not None:
        text += f"; it is expected to start at {_date(seen.starts)}"
    return text


def why_not_begun(seen: Seen, seconds: float) -> JobNotStarted:
    """The error for a job that is given up, as it has waited for so many seconds."""
    text = f"The job has waited for {seconds:.0f} s, and is given up"
    return JobNotStarted(f"{text}: {seen.reason or seen.state}")


def refused(answer: Answer) -> HostUnusable:
    """The error for a job that sbatch has not submitted, by its answer."""
    text = answer.complaint[:WORDS] or f"sbatch has ended with status {answer.status}"
    if _QUOTA.search(text):
        return QuotaMet(f"Slurm has no further job of this service: {text}")
    if answer.is_of_nobody:
        return HostUnreachable(f"Slurm cannot be reached: {text}")
    return HostUnusable(f"Slurm refuses the job: {text}")


def why_ended(seen: Seen, said: str) -> HostUnusable:
    """The error that tells how a job has ended; ``said`` is the last of its output."""
    if told := own_word(said):
        return told
    job = f"The job {seen.job_id}".rstrip()
    if seen.state == "TIMEOUT":
        return JobEvicted(f"{job} has reached its time limit (TIMEOUT)")
    if seen.state == "OUT_OF_MEMORY":
        most = f": it may take {seen.memory}" if seen.memory else ""
        return JobOutOfMemory(f"{job} was killed for want of memory{most}")
    if seen.state == "PREEMPTED":
        return JobEvicted(f"{job} was preempted: another needs its place (PREEMPTED)")
    if seen.state == "CANCELLED":
        by = "" if seen.by is None else f" by {_user(seen.by)}"
        return JobEvicted(f"{job} was cancelled{by} (CANCELLED)")
    if seen.state in ("NODE_FAIL", "BOOT_FAIL"):
        return JobEvicted(f"{job} was lost with its node {seen.node} ({seen.state})")
    if seen.state == FORGOTTEN:
        return HostUnusable("The job has ended, and Slurm does not know any more how")
    if seen.state not in ("COMPLETED", "FAILED"):
        reason = f", {seen.reason}" if seen.reason else ""
        return HostUnusable(f"{job} has ended ({seen.state}{reason})")
    return _failed(job, seen, said)


def _failed(job: str, seen: Seen, said: str) -> HostUnusable:
    last = f". The last it wrote:\n{said[-WORDS:]}" if said else ""
    status, killer = seen.exit or (None, 0)
    if status in _NO_PROGRAM:
        return HostWithoutPython(f"The node {seen.node} cannot run the interpreter{last}")
    if is_full(said):
        return HostFull(f"The node {seen.node} has no room{last}")
    if seen.reason == "JobLaunchFailure" and not killer:
        text = f"{job} could not be launched: has its node the directory `shared`?"
        return HostUnusable(f"{text}{last}")
    if killer or (status is not None and status > 128):
        number = killer or (status or 0) - 128
        text = f"was killed by signal {number} ({_signal(number)})"
    elif status is None:
        text = f"has ended ({seen.state})"
    else:
        text = f"has ended with status {status} ({seen.state})"
    return HostUnusable(f"{job} {text}{last}")


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (user {uid})"
    except (KeyError, OverflowError):
        return f"user {uid}"
