"""What is told of pods, by what a real API server says of them."""

from __future__ import annotations

from typing import Any

import pytest

from app.managers.processes.engines.engine import JobState
from app.managers.processes.engines.kubernetes_words import (
    Answer,
    Sight,
    job_of,
    refused,
    seen,
    text_of,
    why_ended,
    why_not_begun,
)

Json = dict[str, Any]

SPEC: Json = {
    "nodeName": "node-1",
    "containers": [
        {
            "name": "kernel",
            "image": "k:1",
            "command": ["python3", "-c", "x"],
            "resources": {"limits": {"memory": "1Gi"}},
        }
    ],
}


def pod(state: Json | None = None, phase: str = "Running", **status: Any) -> Json:
    container = {"name": "kernel", "image": "k:1", "ready": True, "state": state or {}}
    statuses = [{"name": "side", "state": {"running": {}}}, container] if state else []
    return {
        "metadata": {"name": "p", "labels": {}},
        "spec": SPEC,
        "status": {"phase": phase, "containerStatuses": statuses, **status},
    }


def condition(kind: str, status: str, reason: str = "", message: str = "") -> list[Json]:
    return [{"type": kind, "status": status, "reason": reason, "message": message}]


def terminated(**more: Any) -> Json:
    return {"terminated": {"exitCode": 1, "reason": "Error", **more}}


RUNS = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}


def test_a_pod_that_waits_says_what_for() -> None:
    message = "0/2 nodes are available: 2 Insufficient memory."
    conditions = condition("PodScheduled", "False", "Unschedulable", message)
    sight = seen(pod(phase="Pending", conditions=conditions))
    assert sight == Sight(
        JobState.WAITING, f"The pod waits for a node: Unschedulable: {message}", ""
    )
    pull = {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "k:1"'}}
    sight = seen(pod(pull, "Pending"))
    assert sight.words.startswith("The image k:1 cannot be had (ImagePullBackOff): Back-off")
    assert sight.trouble == "ImagePullBackOff"
    config = {"waiting": {"reason": "CreateContainerConfigError"}}
    assert seen(pod(config, "Pending")).words == (
        "The container cannot be started (CreateContainerConfigError)"
    )
    other = {"waiting": {"reason": "SomethingNew"}}
    assert seen(pod(other, "Pending")).words == "The container waits (SomethingNew)"
    first = [{"name": "first", "image": "i:1", "state": {"waiting": {"reason": "ErrImagePull"}}}]
    assert "i:1" in seen(pod(phase="Pending", initContainerStatuses=first)).words


def test_events_tell_what_a_pod_does_not() -> None:
    creating = pod({"waiting": {"reason": "ContainerCreating"}}, "Pending")
    assert seen(creating) == Sight(JobState.WAITING, "The pod is prepared on node-1")
    pulling = {"type": "Normal", "reason": "Pulling", "message": "Pulling image", "eventTime": "3"}
    old = {"type": "Warning", "reason": "Old", "message": "old", "firstTimestamp": "1"}
    mount = {"type": "Warning", "reason": "FailedMount", "message": "no", "lastTimestamp": "2"}
    assert seen(creating, [pulling]).words.endswith("node-1: Pulling: Pulling image")
    assert seen(creating, [old, pulling, mount]).words.endswith("node-1: FailedMount: no")
    assert seen(creating, [{"type": "Warning"}]).words == "The pod is prepared on node-1"
    nowhere = {**creating, "spec": {**SPEC, "nodeName": None}}
    assert seen(nowhere).words == "The pod waits for a node"


def test_a_node_that_is_away_is_no_end() -> None:
    assert seen(pod(RUNS)) == Sight(JobState.RUNNING)
    away = seen(pod(RUNS, conditions=condition("Ready", "False")))
    assert away == Sight(JobState.RUNNING, "The node node-1 is not ready, as the cluster says")
    assert seen(pod(RUNS, "Unknown")).words == away.words
    assert seen(pod(RUNS, reason="NodeLost")).words == away.words
    # A pod that is set to Failed while nobody says that its container has ended.
    assert seen(pod(RUNS, "Failed")) == away
    taken = condition("DisruptionTarget", "True", "DeletionByTaintManager", "Taint manager: x")
    assert seen(pod(RUNS, "Failed", conditions=taken)) == Sight(
        JobState.RUNNING, "The pod is evicted (DeletionByTaintManager): Taint manager: x"
    )


def test_one_that_is_deleted_says_so_and_has_not_ended_yet() -> None:
    deleted = pod(RUNS)
    deleted["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert seen(deleted) == Sight(JobState.RUNNING, "The pod is being deleted")
    waits = {**pod(phase="Pending"), "metadata": deleted["metadata"]}
    assert seen(waits).state is JobState.WAITING


def test_what_has_ended_has() -> None:
    assert seen(pod(terminated())).state is JobState.ENDED  # another container runs on
    assert seen(pod(phase="Failed", reason="Evicted")).state is JobState.ENDED
    assert seen(pod(terminated(exitCode=0), "Succeeded")).state is JobState.ENDED


def test_how_a_pod_ended() -> None:
    def told(state: Json | None = None, **status: Any) -> tuple[str, str]:
        why = why_ended(pod(state, "Failed", **status))
        return why.code, why.message

    killed = terminated(reason="OOMKilled", exitCode=137)
    code, text = told(killed)
    assert (code, text) == (
        "out_of_memory",
        "The container was killed for want of memory: it may take 1Gi",
    )
    assert told(terminated(exitCode=137))[1] == "The container was killed by signal 9 (SIGKILL)"
    assert told(terminated(exitCode=3, message="no\nluck"))[1] == (
        "The container ended with status 3. The last it wrote:\nno\nluck"
    )
    assert told()[1] == "The container has ended"
    evicted: Json = {"reason": "Evicted", "message": "The node was low on resource: memory."}
    assert told(**evicted) == (
        "job_evicted",
        "The pod was evicted: The node was low on resource: memory.",
    )
    assert told(reason="DeadlineExceeded")[1] == "The pod was ended: its deadline has passed"
    assert told(message="what it says")[1] == "The container has ended (what it says)"
    drained = condition("DisruptionTarget", "True", "EvictionByEvictionAPI", "evicting")
    assert told(terminated(exitCode=0), conditions=drained) == (
        "job_evicted",
        "The pod was evicted (EvictionByEvictionAPI): evicting",
    )
    gone = pod(terminated(exitCode=0))
    gone["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    text = why_ended(gone).message
    assert text == "The pod was deleted, and its container ended with status 0"
    no_limit = pod(killed)
    no_limit["spec"] = {"containers": [{"name": "kernel"}]}
    assert why_ended(no_limit).message == "The container was killed for want of memory"


def test_why_a_container_could_not_start() -> None:
    runc = 'exec: "python3": executable file not found in $PATH: unknown'
    why = why_ended(pod(terminated(reason="StartError", exitCode=128, message=runc)))
    assert (why.code, why.message[:24]) == ("host_without_python", "The image k:1 has no pyt")
    full = "write /x: no space left on device"
    assert why_ended(pod(terminated(reason="StartError", message=full))).code == "host_full"
    other = why_ended(pod(terminated(reason="ContainerCannotRun", message="denied")))
    assert (other.code, other.message) == (
        "host_unusable",
        "The container cannot be started: denied",
    )


def test_what_the_program_of_the_job_says_is_believed_first() -> None:
    line = 'kernelkeep: {"failed": "host_without_python", "text": "it lacks msgspec"}'
    said = f"noise\nkernelkeep: not JSON\n{line}\n"
    why = why_ended(pod(terminated(message=said)))
    assert (why.code, why.message) == ("host_without_python", "it lacks msgspec")
    unknown = why_ended(pod(terminated(message='kernelkeep: {"failed": "new", "text": "x"}')))
    assert (unknown.code, unknown.message) == ("host_unusable", "x")


def test_why_one_is_given_up() -> None:
    pull = Sight(JobState.WAITING, "no image", "ErrImagePull")
    assert why_not_begun(pull, 5).code == "image_unusable"
    assert why_not_begun(Sight(JobState.WAITING, "bad", "RunContainerError"), 5).message == "bad"
    slow = why_not_begun(Sight(JobState.WAITING, "It queues."), 5)
    assert (slow.code, slow.message) == (
        "job_not_started",
        "The pod did not start within 5 s. It queues.",
    )


def test_what_is_refused() -> None:
    quota = 'pods "x" is forbidden: exceeded quota: q, requested: pods=1, used: pods=6'
    assert refused(Answer(403, {"message": quota})).code == "quota_met"
    invalid = refused(Answer(422, {"message": "Pod is invalid:\n  x"}))
    assert (invalid.code, invalid.message) == (
        "host_unusable",
        "Kubernetes refuses the pod: Pod is invalid: x",
    )
    assert refused(Answer(400, {})).message == "Kubernetes refuses the pod: status 400"


@pytest.mark.parametrize("nonsense", [None, [], "x", 7, {"a": None}])
def test_nonsense_is_no_fault_of_ours(nonsense: Any) -> None:
    """Whatever an API server says in place of an object, or of a part of one."""
    for part in ("metadata", "spec", "status"):
        odd = {**pod(RUNS), part: nonsense}
        assert seen(odd, [{}]).state in JobState
        assert why_ended(odd).message
        assert job_of(odd, Sight(JobState.RUNNING)) is None
    for name in ("containerStatuses", "conditions", "initContainerStatuses", "reason", "phase"):
        odd = pod(RUNS, **({"phase": "Pending"} | {name: nonsense}))
        assert seen(odd).state in JobState
        assert why_ended(odd).message


def test_a_pod_with_our_labels_is_a_job() -> None:
    labels = {"org.kernelkeep.keeper": "k", "org.kernelkeep.generation": "3"}
    ours = {"metadata": {"name": "p", "labels": labels}}
    job = job_of(ours, Sight(JobState.WAITING, "w"))
    assert job is not None
    assert (job.where, job.keeper_id, job.generation, job.words) == ("p", "k", 3, "w")
    assert job.is_nobodys
    owned = {"metadata": {"name": "p", "labels": {**labels, "org.kernelkeep.owner": "ada"}}}
    assert job_of(owned, Sight(JobState.RUNNING)) == ("p", "k", 3, "running", "", False)
    labels["org.kernelkeep.generation"] = "x"
    assert job_of(ours, Sight(JobState.WAITING)) is None


def test_a_text_is_one_line_that_is_not_too_long() -> None:
    assert text_of(" a\n b ") == "a b"
    assert len(text_of("x" * 10_000)) == 2000
    assert text_of(None) == ""
