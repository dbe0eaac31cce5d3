"""Threads for work that may never end."""

from __future__ import annotations

import subprocess
import sys
import threading
import weakref
from concurrent.futures import CancelledError

import pytest

from app.managers.threads import DaemonThreads


def test_work_is_done_in_its_order_and_what_it_raises_is_its_callers() -> None:
    threads, seen = DaemonThreads(1, "writers"), list[int]()
    failing = threads.submit(lambda: 1 // 0)
    for number in range(100):
        threads.submit(lambda number=number: seen.append(number))
    threads.shutdown()
    with pytest.raises(ZeroDivisionError):
        failing.result(10)
    for thread in threads._threads:
        thread.join(10)
        assert not thread.is_alive()
    assert seen == [*range(100)]
    with pytest.raises(RuntimeError, match="the writers are closed"):
        threads.submit(int)


def test_as_many_hang_as_there_are_threads_and_what_is_given_up_is_not_done() -> None:
    threads, answers = DaemonThreads(2, "readers"), threading.Event()
    assert [threads.submit(int).result(10) for _ in range(5)] == [0] * 5
    assert len(threads._threads) == 2
    hanging = [threads.submit(answers.wait) for _ in range(2)]
    waiting = threads.submit(int)
    assert waiting.cancel()
    answers.set()
    assert [each.result(10) for each in hanging] == [True, True]
    assert threads.submit(int).result(10) == 0
    with pytest.raises(CancelledError):
        waiting.result(10)
    threads.shutdown()


def test_a_thread_that_cannot_be_started_is_tried_again_with_the_next_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, done = DaemonThreads(1, "writers"), list[str]()

    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            threads.submit(lambda: done.append("refused"))
    threads.submit(lambda: done.append("taken")).result(10)
    assert done == ["taken"]
    threads.shutdown()


class Held:
    """What a piece of work holds."""


def test_a_thread_that_waits_holds_nothing_of_the_work_that_was_given_up() -> None:
    threads, answers, held = DaemonThreads(1, "writers"), threading.Event(), Held()
    is_held = weakref.ref(held)
    hanging = threads.submit(answers.wait)
    assert threads.submit(lambda held=held: held).cancel()
    del held
    answers.set()
    assert hanging.result(10)
    threads.submit(int).result(10)
    assert is_held() is None
    threads.shutdown()


def test_work_that_never_ends_does_not_keep_the_process() -> None:
    code = "\n".join(
        (
            "import threading",
            "from app.managers.threads import DaemonThreads",
            "threads = DaemonThreads(1, 'work')",
            "threads.submit(threading.Event().wait)",
        )
    )
    subprocess.run([sys.executable, "-c", code], timeout=30, check=True)
