"""Which kernels are known to have ended, and for how long."""

from __future__ import annotations

import pytest

from app.managers.kernels import departures
from app.managers.kernels.departures import KEPT_SECONDS, Departures
from app.managers.owners.ownership import Ownership

ADA, BOB = Ownership("ada"), Ownership("bob")


def ids(known: Departures, since: int = 0, now: float = 0.0) -> list[str]:
    return [one.kernel_id for one in known.since(since, now)]


def noted(*names: tuple[str, Ownership]) -> Departures:
    known = Departures()
    for name, ownership in names:
        known.note(name, b"{}", None, ownership, 0.0)
    return known


def test_those_behind_a_number_are_told_and_the_latest_number() -> None:
    known = noted(("a", ADA), ("b", BOB))
    assert ids(known) == ["a", "b"]
    assert ids(known, 1) == ["b"]
    assert ids(known, known.last) == []
    known.note("c", b'{"id":"c"}', "far", ADA, 7.0)
    (one,) = known.since(2, 7.0)
    assert one == (3, "c", 7.0, b'{"id":"c"}', "far", ADA)


def test_an_id_that_ends_again_is_told_again_and_once() -> None:
    known = noted(("a", ADA), ("b", ADA), ("a", ADA))
    assert ids(known) == ["b", "a"]
    assert ids(known, 2) == ["a"]


def test_the_oldest_of_an_owner_are_forgotten_and_nobody_elses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(departures, "MOST_OF_ONE", 2)
    known = noted(("b", BOB), ("a1", ADA), ("a2", ADA), ("a3", ADA))
    assert ids(known) == ["b", "a2", "a3"]


def test_the_oldest_of_all_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(departures, "MOST", 2)
    known = noted(*((str(number), Ownership(str(number))) for number in range(4)))
    assert ids(known) == ["2", "3"]


def test_after_a_day_they_are_not_told_any_more() -> None:
    known = noted(("a", ADA))
    assert ids(known, now=KEPT_SECONDS - 1) == ["a"]
    assert ids(known, now=KEPT_SECONDS) == []
