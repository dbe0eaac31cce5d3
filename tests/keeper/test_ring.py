"""What a keeper holds of all kernels together."""

from __future__ import annotations

from app.keeper.ring import FRAME_OVERHEAD, Ring, Room


def test_rings_that_want_more_than_there_is_get_the_same_share() -> None:
    rings: list[Ring] = []
    room = Room(lambda: rings)
    room.max_bytes = 160_000
    rings += [Ring(100_000, room) for _ in range(4)]
    frame = b"x" * (1000 - FRAME_OVERHEAD)
    quiet, *busy = rings
    for _ in range(10):
        quiet.append([frame], len(frame))
    most = 0
    for number in range(300):
        for ring in busy[: 1 if number < 150 else 3]:
            ring.append([frame], len(frame))
        most = max(most, sum(ring.size for ring in rings))
    assert 150_000 < most <= 160_000
    assert (quiet.first, quiet.size) == (1, 10_000)
    assert [ring.next - 1 for ring in busy] == [300, 150, 150]
    for ring in busy:
        assert 45_000 < ring.size <= 51_000
        assert ring.first == ring.next - ring.size // 1000
        assert [index for index, _ in ring.since(0, 10**9)] == list(range(ring.first, ring.next))
    busy[0].skip()
    assert busy[0].size == 0
