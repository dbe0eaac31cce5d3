"""What is made of what Docker and podman say."""

from __future__ import annotations

from typing import Any

import pytest

from app.managers.processes.engines.docker_words import (
    GENERATION,
    KEEPER,
    Pull,
    job_of,
    refused,
    why_ended,
)
from app.managers.processes.engines.engine import Job, JobState
from app.managers.processes.hosts.errors import (
    HostFull,
    HostUnusable,
    HostWithoutPython,
    JobOutOfMemory,
)


def listed(state: str, **labels: str) -> dict[str, Any]:
    return {"Id": "c", "State": state, "Labels": labels}


def test_a_job_is_told_by_its_labels() -> None:
    labels = {KEEPER: "k", GENERATION: "2"}
    assert job_of(listed("running", **labels)) == Job("c", "k", 2, JobState.RUNNING)
    paused = job_of(listed("paused", **labels))
    assert paused is not None
    assert (paused.is_alive, paused.words) == (True, "its container is paused")
    # What was created and not started never got its stdin, and never will.
    for state in ("created", "exited", "dead", "configured"):
        job = job_of(listed(state, **labels))
        assert job is not None
        assert not job.is_alive
    assert job_of(listed("running", **{KEEPER: "k"})) is None
    assert job_of(listed("running", **{KEEPER: "k", GENERATION: "x"})) is None
    assert job_of({"Id": "c", "Labels": None}) is None


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ('exec: "python3": executable file not found in $PATH', HostWithoutPython),
        ("crun: executable file `python3` not found in $PATH: No such file", HostWithoutPython),
        ("write /var/lib: no space left on device", HostFull),
        ("network nowhere not found", HostUnusable),
    ],
)
def test_what_the_engine_refuses_has_a_code(message: str, error: type[HostUnusable]) -> None:
    found = refused(message, "lab", "python3")
    assert type(found) is error
    assert message in found.message


def test_how_a_container_ended_is_told() -> None:
    def why(said: str = "", limit: int = 0, **state: Any) -> HostUnusable:
        return why_ended({"State": state, "HostConfig": {"Memory": limit}}, said)

    memory = why(OOMKilled=True, ExitCode=137, limit=2**29)
    assert isinstance(memory, JobOutOfMemory)
    assert "512 MiB" in memory.message
    assert "want of memory" in why(OOMKilled=True).message
    assert why(ExitCode=137).message == "The container was killed by signal 9 (SIGKILL)"
    assert why(ExitCode=3).message == "The container ended with status 3"
    assert why(ExitCode=250).message == "The container ended with status 250"
    assert why(Status="created").message == "The container was made and never started"
    assert why_ended({}, "").message == "The container has ended"
    assert why(ExitCode=1, Error="broken").message.endswith("(broken)")
    assert why("last words", ExitCode=1).message.endswith("The last it wrote:\nlast words")


def test_what_the_job_says_of_itself_comes_first() -> None:
    said = 'x\nkernelkeep: {"failed": "host_without_python", "text": "it lacks pyzmq"}'
    found = why_ended({"State": {"ExitCode": 1}}, said)
    assert isinstance(found, HostWithoutPython)
    assert found.message == "it lacks pyzmq"
    unknown = why_ended({}, 'kernelkeep: {"failed": "new", "text": "t"}')
    assert type(unknown) is HostUnusable
    assert "kernelkeep: {" in why_ended({}, "kernelkeep: {").message


def test_a_pull_is_followed() -> None:
    pull = Pull("lab")
    assert pull.on_progress({"status": "Pulling"}) == "The image lab is pulled"
    detail = {"current": 2**20, "total": 2**22}
    pull.on_progress({"id": "a", "progressDetail": detail})
    told = pull.on_progress({"id": "b", "progressDetail": {**detail, "current": 2**23}})
    assert "5 of 8 MiB" in told
    assert pull.on_progress({"id": "a", "progressDetail": {}}) == told
