"""Tells the application in time that its server stops.

An ASGI server waits for open responses before it ends the lifespan, by which the application learns
that the server stops. A stream that follows a kernel never ends by itself, so the server would wait
for ever. ASGI has no earlier event, so the application handles the same signals as its server, and
passes them on.
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
    """Within the block, call ``callback`` on the event loop at each SIGINT and SIGTERM.

    The server's own handler is called, too. Python runs signal handlers in the main thread only; in
    any other thread this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    handlers: dict[int, Any] = {}

    # A signal handler runs between any two instructions of the main thread, so it touches nothing
    # of the application itself. The callback runs in the next turn of the loop, before the server
    # stops: the server's handler only sets a flag, at which its main loop looks in a later turn.
    def on_signal(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(callback)
        handlers[number](number, frame)

    for stop in _SIGNALS:
        handler = signal.getsignal(stop)
        if callable(handler):  # a handler of the server, and not the default action
            handlers[stop] = handler
            signal.signal(stop, on_signal)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            # The server may have installed another handler meanwhile, which then stays.
            if signal.getsignal(number) is on_signal:
                signal.signal(number, handler)
