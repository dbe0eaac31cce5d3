"""Hearing of the server's end in time.

A server waits for open responses before it tells the application, by the end of its lifespan, that
it stops. Streams that follow a kernel would never end, and the server with them. There is no word
for this in ASGI, so the application listens to the same signals as its server, and passes them on.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

__all__ = ["at_stop_signals"]

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def at_stop_signals(callback: Callable[[], None]) -> Iterator[None]:
    """Within, call ``callback`` on the event loop at each signal to stop, whoever handles that.

    Only the main thread hears signals; in any other nothing happens.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    handlers: dict[int, Any] = {}

    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        handlers[number](number, frame)

    for stop in _SIGNALS:
        handler = signal.getsignal(stop)
        if callable(handler):  # the server's, not the default action
            handlers[stop] = handler
            signal.signal(stop, on_signal)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if signal.getsignal(number) is on_signal:
                signal.signal(number, handler)
