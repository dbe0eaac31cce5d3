"""A server whose wall clock jumps while its monotonic clock goes on.

That is what a suspended machine looks like to its processes when it wakes up (on Linux and macOS
the monotonic clock stands still meanwhile), and what somebody does who sets the clock. With the
variable `AHEAD` the clock is so many seconds ahead from the beginning.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import FrameType

from tests.support.server import ServerProcess

JUMP = 86_400  # seconds

AHEAD = "WALL_CLOCK_AHEAD"


class JumpingServer(ServerProcess):
    """Its wall clock is the system's, plus or minus a day for each jump."""

    @property
    def command(self) -> list[str]:
        interpreter, *rest = super().command
        return [interpreter, "-m", __name__, *rest[2:]]

    def jump_ahead(self) -> None:
        self.send_signal(signal.SIGUSR1)

    def jump_back(self) -> None:
        self.send_signal(signal.SIGUSR2)


def main() -> None:
    shift = int(os.environ.get(AHEAD, "0"))
    system_time, system_time_ns = time.time, time.time_ns

    def jump(number: int, _frame: FrameType | None) -> None:
        nonlocal shift
        shift += JUMP if number == signal.SIGUSR1 else -JUMP

    signal.signal(signal.SIGUSR1, jump)
    signal.signal(signal.SIGUSR2, jump)
    time.time = lambda: system_time() + shift
    time.time_ns = lambda: system_time_ns() + shift * 10**9
    from app.cli import main as run

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
