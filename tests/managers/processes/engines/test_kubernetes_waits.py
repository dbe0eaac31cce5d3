"""Pods that wait: which are given up, and when."""

from __future__ import annotations

from app.managers.processes.engines.engine import JobState
from app.managers.processes.engines.kubernetes_waits import Waits
from app.managers.processes.engines.kubernetes_words import Sight

QUEUES = Sight(JobState.WAITING, "It queues.")
PULLS = Sight(JobState.WAITING, "It cannot be pulled.", "ImagePullBackOff")


def test_one_that_waits_for_too_long_is_given_up() -> None:
    waits = Waits()
    assert waits.see("p", QUEUES, 100, 1000) is None
    assert waits.see("p", QUEUES, 100, 1099) is None
    why = waits.see("p", QUEUES, 100, 1100)
    assert why is not None
    assert why.code == "job_not_started"


def test_trouble_may_pass() -> None:
    waits = Waits(60)
    assert waits.see("p", PULLS, 600, 0) is None
    assert waits.see("p", QUEUES, 600, 50) is None
    assert waits.see("p", PULLS, 600, 60) is None
    assert waits.see("p", PULLS, 600, 119) is None
    why = waits.see("p", PULLS, 600, 120)
    assert why is not None
    assert why.code == "image_unusable"


def test_some_trouble_does_not() -> None:
    hopeless = Sight(JobState.WAITING, "InvalidImageName", "InvalidImageName")
    assert Waits().see("p", hopeless, 600, 0) is not None


def test_one_that_runs_does_not_wait() -> None:
    waits = Waits()
    waits.see("p", QUEUES, 10, 0)
    assert waits.see("p", Sight(JobState.RUNNING), 10, 100) is None
    assert waits.see("p", QUEUES, 10, 101) is None


def test_one_that_is_gone_is_forgotten() -> None:
    waits = Waits()
    waits.see("p", QUEUES, 10, 0)
    waits.keep(["q"])
    assert waits.see("p", QUEUES, 10, 100) is None
