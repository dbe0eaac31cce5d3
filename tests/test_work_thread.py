"""A thread that does one work after the other, and keeps no process from its end."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest

from app.work_thread import WorkThread

WAIT = 30  # seconds


def test_work_is_done_in_order_and_told_how_it_ended() -> None:
    thread, done, go = WorkThread("work"), list[int](), threading.Event()
    first = thread.submit(go.wait, WAIT)
    given_up = thread.submit(done.append, 0)
    fails = thread.submit(int, "none")
    last = thread.submit(sorted, [1, 2], reverse=True)
    assert given_up.cancel()
    thread.shutdown()
    with pytest.raises(RuntimeError, match="the thread work is closed"):
        thread.submit(print)
    go.set()
    assert first.result(WAIT)
    assert last.result(WAIT) == [2, 1]
    assert isinstance(fails.exception(WAIT), ValueError)
    assert done == []


def test_work_that_never_ends_does_not_keep_the_process() -> None:
    code = "\n".join(
        (
            "import threading",
            "from app.work_thread import WorkThread",
            "thread = WorkThread('work')",
            "thread.submit(threading.Event().wait)",
        )
    )
    subprocess.run([sys.executable, "-c", code], timeout=WAIT, check=True)
