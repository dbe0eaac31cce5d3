"""What is said of an engine that cannot be watched, and when it is watched again."""

from __future__ import annotations

import logging

import pytest

from app.managers.processes.engines.troubles import (
    LASTING_SECONDS,
    LONGEST_PAUSE,
    MOST_SAID,
    SHORTEST_PAUSE,
    Troubles,
)
from app.managers.processes.hosts.errors import HostUnreachable

AWAY = HostUnreachable("nobody answers")


def test_pauses_grow_until_the_engine_is_seen() -> None:
    troubles = Troubles("the engine")
    pauses = [troubles.on_end(AWAY) for _ in range(8)]
    assert pauses[:3] == [SHORTEST_PAUSE, 2 * SHORTEST_PAUSE, 4 * SHORTEST_PAUSE]
    assert pauses[-1] == LONGEST_PAUSE
    troubles.on_seen(0)
    assert troubles.on_end(AWAY) == SHORTEST_PAUSE


def test_a_trouble_is_told_once_however_often_it_comes(caplog: pytest.LogCaptureFixture) -> None:
    troubles = Troubles("the engine")
    for now in range(100):
        troubles.on_end(AWAY)
        troubles.on_seen(now)
        troubles.on_end(None)
    assert [record.getMessage() for record in caplog.records] == [
        "jobs of the engine are not seen: nobody answers",
        "jobs of the engine are not seen: it tells no more",
    ]
    assert not any(record.exc_info for record in caplog.records)


def test_it_is_told_again_when_the_engine_was_seen_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    troubles = Troubles("the engine")
    troubles.on_end(AWAY)
    for now in (0, LASTING_SECONDS - 1, LASTING_SECONDS, LASTING_SECONDS + 1):
        troubles.on_seen(now)
    troubles.on_end(AWAY)
    assert [record.getMessage() for record in caplog.records] == [
        "jobs of the engine are not seen: nobody answers",
        "jobs of the engine are seen again",
        "jobs of the engine are not seen: nobody answers",
    ]


def test_what_nobody_expects_has_its_traceback_and_a_bound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    troubles = Troubles("the engine")
    for number in range(100):
        troubles.on_end(ValueError(f"{number}"))
    assert len(caplog.records) == MOST_SAID
    assert caplog.records[0].getMessage() == "jobs of the engine are not seen: 0"
    assert caplog.records[0].exc_info is not None
