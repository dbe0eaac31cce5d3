"""What owners use at all replicas, as one of them counts it with the others."""

from __future__ import annotations

from tests.managers.replicas.asking import Replica

STARTS = "starts_per_minute"


async def test_what_cannot_be_asked_is_each_replica_s_own_until_the_next_beat(
    replicas: list[Replica],
) -> None:
    (first, *_) = replicas
    first.is_away = True
    assert await first.counting.take(STARTS, "anna", 1, 1) is None
    asked = first.asked
    first.is_away = False
    assert await first.counting.take(STARTS, "anna", 1, 1) is None  # and waits for nothing
    assert first.asked == asked
    first.counting.beat()
    taken = await first.counting.take(STARTS, "anna", 1, 1)
    assert taken is not None
    assert (taken.wait, taken.used) == (0.0, 1.0)
