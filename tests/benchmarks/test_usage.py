"""What a server and its keeper use."""

from __future__ import annotations

import os

from benchmarks.usage import Costs, Usage


def test_what_was_used_since_is_the_difference() -> None:
    before = Costs(Usage(1.0, 100, 5), Usage(2.0, 50, 3))
    after = Costs(Usage(1.5, 160, 9), Usage(2.25, 60, 4))

    more = after - before

    assert more.figures("memory", lambda usage: usage.memory) == {
        "memory": 60,
        "memory_keeper": 10,
        "memory_both": 70,
    }
    assert more.cpu("cpu", 100) == {"cpu": 50.0, "cpu_keeper": 25.0, "cpu_both": 75.0}


def test_a_keeper_that_was_not_there_before_counts_as_a_whole() -> None:
    more = Costs(Usage(1.0, 0, 0), Usage(0.5, 0, 0)) - Costs(Usage(0.5, 0, 0))

    assert more.cpu("cpu", 1) == {"cpu": 0.5, "cpu_keeper": 0.5, "cpu_both": 1.0}


def test_without_a_keeper_the_server_is_all_there_is() -> None:
    assert Costs(Usage(1.0, 0, 0)).cpu("cpu", 1) == {"cpu": 1.0, "cpu_both": 1.0}


def test_several_processes_are_summed_up() -> None:
    assert Usage.sum([Usage(1.0, 10, 2), Usage(0.5, 5, 1)]) == Usage(1.5, 15, 3)


def test_a_process_has_used_something() -> None:
    usage = Usage.of(os.getpid())

    assert usage.cpu > 0
    assert usage.memory > 0
    assert usage.descriptors > 0
