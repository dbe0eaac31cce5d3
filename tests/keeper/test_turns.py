"""Who may read how much in a turn."""

from __future__ import annotations

import pytest

from app.keeper import turns
from app.keeper.turns import MESSAGES_ALONE, MESSAGES_SHARED, SHARED_SECONDS, Turns


class Clock:
    """Monotonic seconds, as the test wants them."""

    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(turns, "time", clock)
    return clock


def test_who_is_alone_has_long_turns_whatever_it_says(clock: Clock) -> None:
    shared = Turns()
    assert shared.messages(b"one") == MESSAGES_ALONE
    shared.was_short(b"one")
    assert shared.messages(b"one") == MESSAGES_ALONE


def test_turns_are_short_beside_somebody_who_says_little(clock: Clock) -> None:
    shared = Turns()
    shared.was_short(b"quiet")
    assert shared.messages(b"loud") == MESSAGES_SHARED
    # That the loud one has caught up for once changes nothing.
    shared.was_short(b"loud")
    assert shared.messages(b"loud") == MESSAGES_SHARED
    assert shared.messages(b"quiet") == MESSAGES_SHARED
    clock.now += SHARED_SECONDS
    assert shared.messages(b"loud") == MESSAGES_ALONE


def test_two_that_flood_have_long_turns(clock: Clock) -> None:
    shared = Turns()
    assert shared.messages(b"loud") == shared.messages(b"louder") == MESSAGES_ALONE
