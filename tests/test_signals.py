"""Signals that stop the server, as the application learns of them."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from app.signals import at_stop_signals
from tests.support.processes import eventually

STOPS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Puts the handlers back that pytest and asyncio have."""
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", STOPS)
async def test_the_application_and_the_servers_own_handler_are_called(number: int) -> None:
    told, handled = list[str](), list[int]()

    def handler(number: int, _frame: Any) -> None:
        handled.append(number)

    signal.signal(number, handler)
    with at_stop_signals(lambda: told.append("stop")):
        os.kill(os.getpid(), number)
        await eventually(lambda: told)
    assert (told, handled) == (["stop"], [number])
    assert signal.getsignal(number) is handler


async def test_a_default_action_is_left() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with at_stop_signals(lambda: None):
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


async def test_a_handler_that_was_installed_meanwhile_stays() -> None:
    def first(*_: Any) -> None: ...
    def second(*_: Any) -> None: ...

    signal.signal(signal.SIGTERM, first)
    with at_stop_signals(lambda: None):
        signal.signal(signal.SIGTERM, second)
    assert signal.getsignal(signal.SIGTERM) is second


def test_in_another_thread_nothing_is_done() -> None:
    before = [signal.getsignal(number) for number in STOPS]
    found: list[list[Any]] = []

    async def serve() -> None:
        with at_stop_signals(lambda: None):
            found.append([signal.getsignal(number) for number in STOPS])

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    thread.join()
    assert found == [before]
