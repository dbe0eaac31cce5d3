"""Many flood kernels in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.bare import BareConnection, BareKernel
from benchmarks.clients import receive_all, round_trip
from benchmarks.crowd import command
from benchmarks.servers import ROOT


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Path]:
    """Where a crowd waits for kernels."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    crowd = subprocess.Popen([sys.executable, "-m", "benchmarks.crowd", str(path)], cwd=ROOT)
    yield path
    crowd.kill()
    crowd.wait(10)


def test_its_kernels_answer_and_talk_side_by_side(fifo: Path) -> None:
    kernels = [BareKernel(command(fifo)) for _ in range(3)]
    connections = [BareConnection(kernel.info) for kernel in kernels]
    try:
        first, second, third = connections
        for connection in connections:
            round_trip(connection)
            connection.delays = []
        first.execute(json.dumps({"count": 20, "size": 100, "rate": 10, "timed": True}))
        second.execute(json.dumps({"count": 40, "size": 100, "rate": 20, "timed": True}))
        seconds = receive_all([first], 20)
        receive_all([second], 40)

        assert 1.5 < seconds < 10
        assert [each.streams for each in connections] == [20, 40, 0]
        assert len(first.delays or ()) == 20
        assert all(0 <= delay < 10 for delay in first.delays or ())
        round_trip(first)  # what it was to say is said, and it answers
        round_trip(third)
    finally:
        for connection, kernel in zip(connections, kernels, strict=True):
            connection.close()
            kernel.stop()


def test_a_kernel_that_is_told_to_shut_down_ends_and_the_others_stay(fifo: Path) -> None:
    kernels = [BareKernel(command(fifo)) for _ in range(2)]
    connections = [BareConnection(kernel.info) for kernel in kernels]
    try:
        connections[0].request("shutdown_request", {"restart": False})

        assert kernels[0].process.wait(10) != 0
        round_trip(connections[1])
        assert kernels[1].process.poll() is None
    finally:
        for connection, kernel in zip(connections, kernels, strict=True):
            connection.close()
            kernel.stop()
