"""What is made of what Slurm says."""

from __future__ import annotations

import os
from typing import Any

import pytest

from app.managers.processes.engines.engine import JobState
from app.managers.processes.engines.slurm_commands import Answer
from app.managers.processes.engines.slurm_words import (
    FORGOTTEN,
    Seen,
    exit_of,
    is_hopeless,
    labels_of,
    queued,
    recorded,
    refused,
    sight,
    why_ended,
    why_not_begun,
)
from app.managers.processes.hosts.errors import (
    HostFull,
    HostUnreachable,
    HostUnusable,
    HostWithoutPython,
    JobEvicted,
    JobOutOfMemory,
    QuotaMet,
)

PREFIX = "kernelkeep-s-d-"
NAME = f"{PREFIX}a-b.c-3"
NOW = 1796023714.0


def seen(state: str, **more: Any) -> Seen:
    return Seen("7", NAME, state, node="n1")._replace(**more)


def test_a_job_is_told_by_its_name() -> None:
    assert labels_of(NAME, PREFIX) == ("a-b.c", 3)
    for name in ("", "other", PREFIX, f"{PREFIX}3", f"{PREFIX}-3", f"{PREFIX}a-x", f"{PREFIX}a-²"):
        assert labels_of(name, PREFIX) is None
    assert labels_of(NAME, "kernelkeep-s-e-") is None


def test_a_queue_is_read_and_jobs_of_others_are_passed_over() -> None:
    lines = [
        f"12|RUNNING|1796023714|1796027314|kkn1|100M|{NAME}|None",
        f"9|PENDING|N/A|N/A||2G|{PREFIX}x-1|(ReqNodeNotAvail, UnavailableNodes:n[1-2]|x)|more",
        f"13_1|RUNNING|1|2|n|1M|{PREFIX}y-1|None",
        "14|RUNNING|1|2|n|1M|a|job|of|somebody",
        "half a li",
        "",
    ]
    waits, runs = queued("\n".join(lines), PREFIX)
    assert runs == Seen("12", NAME, "RUNNING", NOW, NOW + 3600, "kkn1", "100M", "")
    assert (waits.state, waits.starts, waits.ends, waits.node) == ("PENDING", None, None, "")
    assert waits.reason == "ReqNodeNotAvail, UnavailableNodes:n[1-2]|x)|more"


def test_records_are_read() -> None:
    lines = [
        f"4|FAILED|1:0|n1|{NAME}",
        f"5|CANCELLED by 1000|0:15|n1|{NAME}|and more",
        f"3|COMPLETED|0:0|n1|{NAME}",
        f"6|TIMEOUT|?|None assigned|{PREFIX}x-1",
        f"7.batch|FAILED|1:0|n1|{NAME}",
        "8|FAILED|1:0|n1|other",
        "no",
    ]
    found = recorded("\n".join(lines), PREFIX)
    assert found[NAME] == Seen("5", NAME, "CANCELLED", node="n1", exit=(0, 15), by=1000)
    assert found[f"{PREFIX}x-1"] == Seen("6", f"{PREFIX}x-1", "TIMEOUT")
    assert len(found) == 2
    assert exit_of("JobId=1 DerivedExitCode=9:9 ExitCode=7:0 x=1") == (7, 0)
    assert exit_of("") is None


@pytest.mark.parametrize(
    ("told", "state", "words"),
    [
        (seen("RUNNING"), "running", ""),
        (seen("RUNNING", ends=NOW + 601), "running", ""),
        (
            seen("RUNNING", ends=NOW + 600),
            "running",
            "The job 7 reaches its time limit at 2026-11-30 07:38 UTC, and ends then",
        ),
        (seen("RUNNING", ends=NOW - 1e300), "running", "at some day"),
        (seen("PENDING", reason="Priority"), "waiting", "The job 7 waits (Priority)"),
        (
            seen("PENDING", reason="Resources", starts=NOW),
            "waiting",
            "The job 7 waits (Resources); it is expected to start at 2026-11-30 07:28 UTC",
        ),
        (seen("REQUEUE_HOLD"), "waiting", "waits (REQUEUE_HOLD)"),
        (seen("CONFIGURING"), "waiting", "made ready"),
        (seen("COMPLETING"), "running", "is being ended"),
        (seen("COMPLETING", reason="TimeLimit"), "running", "has reached its time limit"),
        (seen("SUSPENDED"), "running", "suspended"),
        # What is not known is no end.
        (seen("SOMETHING_NEW"), "running", ""),
        *((seen(each), "ended", "") for each in ("COMPLETED", "FAILED", "OUT_OF_MEMORY")),
        *((seen(each), "ended", "") for each in ("CANCELLED", "NODE_FAIL", "TIMEOUT", FORGOTTEN)),
    ],
)
def test_what_a_job_does(told: Seen, state: str, words: str) -> None:
    found, said = sight(told, frozenset(), NOW)
    assert found is JobState(state)
    assert words in said
    assert bool(words) == bool(said)


def test_a_job_whose_node_is_away_may_live() -> None:
    away = frozenset(("n1", "n2"))
    for state in ("CANCELLED", "NODE_FAIL", "TIMEOUT", "PREEMPTED"):
        found, said = sight(seen(state), away, NOW)
        assert found is JobState.RUNNING
        assert f"({state}), and does not reach n1: its processes may live there" in said
        assert sight(seen(state, node="n3"), away, NOW) == (JobState.ENDED, "")
    # These its node has told of.
    for state in ("COMPLETED", "FAILED", "OUT_OF_MEMORY"):
        assert sight(seen(state), away, NOW) == (JobState.ENDED, "")
    found, said = sight(Seen("", NAME, FORGOTTEN), away | {"n3", "n4"}, NOW)
    assert found is JobState.RUNNING
    assert "does not reach n1, n2, n3 and others" in said


def test_what_never_comes() -> None:
    assert is_hopeless(seen("PENDING", reason="PartitionTimeLimit"))
    assert not is_hopeless(seen("PENDING", reason="Resources"))
    assert not is_hopeless(seen("RUNNING", reason="BadConstraints"))
    assert "given up: PENDING" in why_not_begun(seen("PENDING"), 5.0).message


@pytest.mark.parametrize(
    ("complaint", "error"),
    [
        ("Unable to contact slurm controller (connect failure)", HostUnreachable),
        ("Could not establish a configuration source", HostUnreachable),
        ("Batch job submission failed: Socket timed out on send/recv operation", HostUnreachable),
        (
            "AssocMaxSubmitJobLimit; Batch job submission failed: Job violates accounting/QOS "
            "policy (job submit limit, user's size and/or time limits)",
            QuotaMet,
        ),
        ("Slurm temporarily unable to accept job, sleeping and retrying", QuotaMet),
        ("Batch job submission failed: Invalid partition name specified", HostUnusable),
        ("", HostUnusable),
    ],
)
def test_why_a_job_was_not_submitted(complaint: str, error: type[HostUnusable]) -> None:
    found = refused(Answer(1, "", complaint))
    assert type(found) is error
    assert complaint in found.message


@pytest.mark.parametrize(
    ("told", "said", "error", "text"),
    [
        (seen("TIMEOUT"), "", JobEvicted, "The job 7 has reached its time limit (TIMEOUT)"),
        (seen("OUT_OF_MEMORY", memory="2G"), "", JobOutOfMemory, "memory: it may take 2G"),
        (seen("OUT_OF_MEMORY"), "", JobOutOfMemory, "want of memory"),
        (seen("PREEMPTED"), "", JobEvicted, "preempted"),
        (seen("CANCELLED"), "", JobEvicted, "The job 7 was cancelled (CANCELLED)"),
        (seen("CANCELLED", by=0), "", JobEvicted, "cancelled by root (user 0)"),
        (seen("CANCELLED", by=2**31), "", JobEvicted, "cancelled by user 2147483648"),
        (seen("NODE_FAIL"), "", JobEvicted, "lost with its node n1 (NODE_FAIL)"),
        (seen("DEADLINE"), "", HostUnusable, "has ended (DEADLINE)"),
        (seen("REVOKED", reason="x"), "", HostUnusable, "has ended (REVOKED, x)"),
        (Seen("", NAME, FORGOTTEN), "", HostUnusable, "does not know any more how"),
        (seen("COMPLETED", exit=(0, 0)), "", HostUnusable, "ended with status 0 (COMPLETED)"),
        (seen("FAILED"), "bye", HostUnusable, "has ended (FAILED). The last it wrote:\nbye"),
        (seen("FAILED", exit=(3, 0)), "", HostUnusable, "ended with status 3"),
        (seen("FAILED", exit=(0, 9)), "", HostUnusable, "killed by signal 9 (SIGKILL)"),
        (seen("FAILED", exit=(137, 0)), "", HostUnusable, "killed by signal 9 (SIGKILL)"),
        (seen("FAILED", exit=(0, 99)), "", HostUnusable, "killed by signal 99 (unknown)"),
        (seen("FAILED", exit=(127, 0)), "sh: x: not found", HostWithoutPython, "x: not found"),
        (seen("FAILED", exit=(1, 0)), "No space left on device", HostFull, "n1 has no room"),
        (
            seen("FAILED", exit=(1, 0), reason="JobLaunchFailure"),
            "",
            HostUnusable,
            "could not be launched: has its node the directory `shared`?",
        ),
        (
            seen("FAILED", exit=(1, 0)),
            'x\nkernelkeep: {"failed": "host_without_python", "text": "lacks zmq"}',
            HostWithoutPython,
            "lacks zmq",
        ),
        (seen("FAILED", exit=(1, 0)), "kernelkeep: {what}", HostUnusable, "with status 1"),
    ],
)
def test_how_a_job_has_ended(told: Seen, said: str, error: type[HostUnusable], text: str) -> None:
    found = why_ended(told, said)
    assert type(found) is error
    assert text in found.message


def test_a_user_is_named() -> None:
    assert "(user " in why_ended(seen("CANCELLED", by=os.getuid()), "").message
