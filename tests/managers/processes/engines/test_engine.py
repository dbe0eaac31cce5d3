"""Jobs that nobody knows: which are ended, and when; and which engine a kernelspec names."""

from __future__ import annotations

from typing import Any

import pytest
from jupyter_client.kernelspec import KernelSpec

from app.managers.processes.engines.engine import (
    ENDED_SECONDS,
    UNKNOWN_SECONDS,
    Job,
    JobState,
    Strangers,
)
from app.managers.processes.engines.kinds import engine_of


def job(keeper: str, generation: int = 1, *, alive: bool = True) -> Job:
    state = JobState.RUNNING if alive else JobState.ENDED
    return Job(f"{keeper}{generation}", keeper, generation, state)


def test_a_stranger_is_left_alone_for_a_while() -> None:
    strangers = Strangers(10)
    jobs = [job("a"), job("b")]
    assert strangers.see(jobs, {"a": 1}, 0) == []
    assert strangers.see(jobs, {"a": 1}, 9) == []
    assert strangers.see(jobs, {"a": 1}, 10) == [job("b")]


def test_one_that_is_known_meanwhile_is_none() -> None:
    strangers = Strangers(10)
    strangers.see([job("a")], {}, 0)
    strangers.see([job("a")], {"a": 1}, 5)
    assert strangers.see([job("a")], {}, 12) == []
    assert strangers.see([job("a")], {}, 22) == [job("a")]


def test_what_has_ended_is_left_to_a_kernel_that_is_about_to_be_adopted() -> None:
    strangers, ended = Strangers(), job("a", alive=False)
    assert strangers.see([ended], {}, 0) == []
    assert strangers.see([ended], {}, ENDED_SECONDS - 1) == []
    assert strangers.see([ended], {}, ENDED_SECONDS) == [ended]
    # That of a known kernel says how it ended.
    assert strangers.see([ended], {"a": 1}, UNKNOWN_SECONDS) == []


def test_an_earlier_job_of_a_kernel_is_a_stranger() -> None:
    strangers = Strangers(10)
    jobs = [job("a", 1), job("a", 2), job("a", 3)]
    assert strangers.see(jobs, {"a": 2}, 0) == []
    assert strangers.see(jobs, {"a": 2}, 10) == [job("a", 1)]


def test_one_that_is_still_nobodys_goes_at_once() -> None:
    parked = job("a")._replace(is_nobodys=True)
    assert Strangers(10).see([parked], {}, 0) == [parked]
    assert Strangers(10).see([parked], {"a": 1}, 0) == []


@pytest.mark.parametrize(
    ("stanza", "name"),
    [
        ({"provisioner_name": "kernelkeep-docker", "config": {}}, "docker"),
        ({"provisioner_name": "kernelkeep-kubernetes"}, "kubernetes"),
        ({"provisioner_name": "kernelkeep-ssh"}, None),
        ({"provisioner_name": 1}, None),
        ({}, None),
        (None, None),
        ("docker", None),
    ],
)
def test_the_engine_of_a_kernelspec_has_a_name_for_people(stanza: Any, name: str | None) -> None:
    assert engine_of(KernelSpec(metadata={"kernel_provisioner": stanza})) == name
    assert engine_of(KernelSpec()) is None
