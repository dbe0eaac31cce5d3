"""The short form of `scripts/replica-drill`: three replicas behind nginx, and what can go wrong."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable

import pytest

from tests.support.replica_drill import TAKEOVER_SECONDS, Drill, Sizes
from tests.support.replica_ground import LOOK_SECONDS, OwnSeconds, make_ground
from tests.support.replica_history import Change, check_history

SIZES = Sizes(kernels=3, websockets=3, streams=2, queued=2)


@pytest.fixture
async def drill(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Drill]:
    place = tmp_path_factory.mktemp("balancer")
    with make_ground(place, random.Random(), shorter=3.0) as ground:
        async with Drill(ground, SIZES) as drill:
            yield drill


@pytest.mark.timeout(600)
async def test_nothing_is_lost_or_done_twice(
    drill: Drill, record_property: Callable[[str, object], None]
) -> None:
    told = [await drill.round(action) for action in ("kill", "sigstop", "link-one", "store-kill")]
    record_property("figures", f"replicas: {told}")
    lost = [one for one in told if one["own"] is not None]
    assert {one["action"] for one in lost} == {"kill", "sigstop", "link-one"}
    for one in lost:
        assert one["own"] <= TAKEOVER_SECONDS, one


async def test_what_a_machine_is_late_is_no_replicas_fault() -> None:
    own, began = OwnSeconds(), time.monotonic()
    await asyncio.sleep(0)
    time.sleep(1.0)  # noqa: ASYNC251  # as if the machine had given this process no turn
    await asyncio.sleep(0)
    assert own.end() <= 2 * LOOK_SECONDS
    assert time.monotonic() - began >= 1.0


# The check of the history itself

BEGIN = Change("k", "a", 7)
FREE = Change("k", None, 7)
TAKEN = Change("k", "b", 8)
GONE = Change("k", None, 8, is_gone=True)


def test_a_kernel_passes_from_one_owner_to_the_next() -> None:
    other = BEGIN._replace(kernel_id="j")
    again = Change("k", "c", 9)
    assert check_history([BEGIN, other, FREE, TAKEN, GONE, again]) == 1
    assert check_history([]) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param([FREE], id="nobody's from the beginning"),
        pytest.param([BEGIN, TAKEN], id="taken from its owner"),
        pytest.param([BEGIN, FREE, TAKEN._replace(term=7)], id="two in a term"),
        pytest.param([BEGIN, FREE, TAKEN._replace(term=9)], id="a term left out"),
        pytest.param([BEGIN, FREE._replace(term=8)], id="a term for nobody"),
        pytest.param([BEGIN, FREE, FREE], id="freed twice"),
        pytest.param([BEGIN, FREE, TAKEN, GONE, BEGIN], id="back in an earlier term"),
        pytest.param([BEGIN, GONE], id="gone in another term"),
    ],
)
def test_any_other_way_is_found(wrong: list[Change]) -> None:
    with pytest.raises(AssertionError):
        check_history(wrong)
