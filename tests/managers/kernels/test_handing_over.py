"""Kernels are handed over to the other replicas one after the other, while the server stops.

These are tests of `app.managers.kernels.stopping`; `tests.managers.replicas.test_takeover` runs it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection

import pytest

from app.managers.handover.handover import Handover
from app.managers.handover.store import StoreAway
from app.managers.kernels import stopping
from app.managers.kernels.stopping import HandingOver
from tests.support.processes import eventually


class Noted(Handover):
    """Notes what it is asked to hand over; the first answers may be failures.

    What is ``unstored`` is not handed over.
    """

    def __init__(self, *failures: Exception, unstored: Collection[str] = ()) -> None:
        super().__init__()
        self.asked: list[set[str]] = []
        self.failures = [*failures]
        self.unstored = {*unstored}
        self.may_go_on = asyncio.Event()

    async def hand_over(self, kernel_ids: Collection[str]) -> Collection[str]:
        self.asked.append({*kernel_ids})
        if self.failures:
            raise self.failures.pop(0)
        await self.may_go_on.wait()
        return {*kernel_ids} - self.unstored

    async def hand_over_rest(self) -> None:
        self.asked.append({"the rest"})


async def test_what_is_left_while_others_are_handed_over_is_next() -> None:
    handover = Noted()
    handing_over = HandingOver(handover)
    handing_over.add()
    handing_over.add("a")
    await eventually(lambda: handover.asked == [{"a"}])
    handing_over.add("b")
    handing_over.add("c")
    handover.may_go_on.set()
    await eventually(lambda: handover.asked == [{"a"}, {"b", "c"}])
    await eventually(lambda: handing_over._task is None)
    handing_over.add("d")
    await eventually(lambda: handover.asked[2:] == [{"d"}])
    await handing_over.end()
    assert handover.asked[3:] == [{"the rest"}]
    # A leave that was given up for late, and ends after all: the registry may be closed by now.
    handing_over.add("late")
    await asyncio.sleep(0)
    assert handover.asked[4:] == []


async def test_what_could_not_be_handed_over_is_tried_again_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stopping, "HAND_OVER_AGAIN_SECONDS", 0.01)
    handover = Noted(StoreAway("away"), StoreAway("away"))
    handover.may_go_on.set()
    handing_over = HandingOver(handover)
    handing_over.add("a", "b")
    await eventually(lambda: handing_over._task is None)
    assert handover.asked == 3 * [{"a", "b"}]
    assert caplog.text.count("2 kernels are handed over later: away") == 1


async def test_what_is_not_stored_yet_is_handed_over_when_it_is(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Another kernel may hold up the end of the server for long."""
    monkeypatch.setattr(stopping, "HAND_OVER_AGAIN_SECONDS", 0.01)
    handover = Noted(unstored=["b"])
    handover.may_go_on.set()
    handing_over = HandingOver(handover)
    handing_over.add("a", "b")
    await eventually(lambda: handover.asked[:3] == [{"a", "b"}, {"b"}, {"b"}])
    handover.unstored.clear()
    await eventually(lambda: handing_over._task is None)
    told = "1 kernels are handed over later: the registry does not have all of them yet"
    assert caplog.text.count(told) == 1


async def test_a_handover_that_hangs_does_not_hold_up_the_end(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stopping, "REST_SECONDS", 0.05)

    class Hangs(Noted):
        async def hand_over_rest(self) -> None:
            await asyncio.Event().wait()

    handover = Hangs()
    handing_over = HandingOver(handover)
    handing_over.add("a")
    await eventually(lambda: handover.asked == [{"a"}])
    async with asyncio.timeout(30):
        await handing_over.end()
    assert "when the lease has ended" in caplog.text


async def test_a_handover_that_raises_is_told_and_the_end_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Raises(Noted):
        async def hand_over_rest(self) -> None:
            raise ValueError("a bug")

    async with asyncio.timeout(30):
        await HandingOver(Raises()).end()
    assert "a bug" in caplog.text
