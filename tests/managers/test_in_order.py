"""Calls in the threads of an executor that keep their order."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.managers.in_order import InOrder


def test_calls_keep_their_order_and_never_meet() -> None:
    made: list[int] = []
    running = threading.Lock()

    def call(number: int) -> int:
        assert running.acquire(blocking=False), "two calls at a time"
        made.append(number)
        running.release()
        return number

    with ThreadPoolExecutor(4) as threads:
        calls = InOrder(threads)
        futures = [calls.submit(call, number) for number in range(200)]
        assert [future.result(10) for future in futures] == made == [*range(200)]


def test_what_one_has_to_wait_for_is_nobody_elses() -> None:
    goes_on = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        stuck, other = InOrder(threads), InOrder(threads)
        waiting = stuck.submit(goes_on.wait, 30)
        behind = stuck.submit(int)
        assert other.submit(int).result(10) == 0
        assert not behind.done()
        goes_on.set()
        assert waiting.result(10)
        assert behind.result(10) == 0


def test_what_fails_or_is_cancelled_holds_up_nobody() -> None:
    goes_on = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        calls = InOrder(threads)
        waiting = calls.submit(goes_on.wait, 30)
        failing, cancelled, last = calls.submit(int, "x"), calls.submit(int), calls.submit(int)
        assert cancelled.cancel()
        goes_on.set()
        assert waiting.result(10)
        with pytest.raises(ValueError, match="invalid literal"):
            failing.result(10)
        assert last.result(10) == 0
