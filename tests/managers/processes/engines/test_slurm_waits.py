"""Which jobs of Slurm's have waited for too long."""

from __future__ import annotations

from app.managers.processes.engines.slurm_waits import HOPELESS_SECONDS, SlurmWaits
from app.managers.processes.engines.slurm_words import Seen


def waiting(reason: str = "Resources", state: str = "PENDING") -> Seen:
    return Seen("7", "job", state, reason=reason)


def test_a_job_waits_as_long_as_was_said() -> None:
    waits = SlurmWaits()
    waits.begin("job", 100.0, 5.0)
    for now in (6.0, 50.0, 104.9):
        waits.see(waiting(), now)
        assert waits.why("job") is None
    waits.see(waiting(), 105.0)
    why = waits.why("job")
    assert why is not None
    assert why.code == "job_not_started"
    assert why.message == "The job has waited for 100 s, and is given up: Resources"
    # That stays so, although it begins now: it is being cancelled.
    waits.see(waiting(state="RUNNING"), 106.0)
    assert waits.why("job") is why
    waits.keep({"another"}, 1000.0)
    assert waits.why("job") is None


def test_a_job_that_runs_does_not_wait_any_more() -> None:
    waits = SlurmWaits()
    waits.begin("job", 100.0, 0.0)
    waits.see(waiting(state="RUNNING"), 99.0)
    waits.see(waiting(), 500.0)
    assert waits.why("job") is None


def test_a_job_that_was_submitted_during_a_look_is_not_forgotten_by_it() -> None:
    waits = SlurmWaits()
    waits.begin("job", 100.0, 5.0)
    waits.keep([], 4.0)
    waits.see(waiting(), 105.0)
    assert waits.why("job") is not None


def test_a_job_that_is_gone_is_forgotten() -> None:
    waits = SlurmWaits()
    waits.begin("job", 100.0, 5.0)
    waits.begin("another", 100.0, 5.0)
    waits.keep(["another"], 6.0)
    # Another of that name would wait for as long as it likes.
    for name in ("job", "another"):
        waits.see(Seen("7", name, "PENDING", reason="Resources"), 50.0)
        waits.see(Seen("7", name, "PENDING", reason="Resources"), 105.0)
    assert waits.why("job") is None
    assert waits.why("another") is not None


def test_what_never_comes_is_waited_for_shortly() -> None:
    waits = SlurmWaits()
    waits.begin("job", 1000.0, 0.0)
    waits.see(waiting("PartitionTimeLimit"), 1.0)
    waits.see(waiting("Resources"), 3.0)  # somebody has changed the partition
    waits.see(waiting("PartitionTimeLimit"), 4.0)
    waits.see(waiting("PartitionTimeLimit"), 3.9 + HOPELESS_SECONDS)
    assert waits.why("job") is None
    waits.see(waiting("PartitionTimeLimit"), 4.0 + HOPELESS_SECONDS)
    why = waits.why("job")
    assert why is not None
    assert "PartitionTimeLimit" in why.message


def test_a_job_of_an_earlier_server_is_left_alone() -> None:
    waits = SlurmWaits()
    for now in (0.0, 1e6):
        waits.see(waiting(), now)
    assert waits.why("job") is None
