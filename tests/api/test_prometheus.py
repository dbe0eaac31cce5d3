"""The metrics of a server's managers, without a server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from app.api.prometheus import Metrics
from app.managers.kernels.construction import multi_kernel_manager
from app.managers.telemetry.counters import Counters
from app.managers.telemetry.events import Events
from app.settings import Settings
from tests.support.metrics import Metrics as Scraped


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[list[Metrics]]:
    """The metrics of two servers in one process."""
    async with AsyncExitStack() as stack:
        metrics = []
        for name in ("one", "other"):
            settings = Settings(root_dir=tmp_path, state_dir=tmp_path / name)
            counters = Counters()
            manager = multi_kernel_manager(settings, Events(), counters)
            stack.push_async_callback(manager.close)
            metrics.append(Metrics(manager, counters))
            stack.callback(metrics[-1].close)
        yield metrics


async def test_two_servers_in_one_process_do_not_count_together(two: list[Metrics]) -> None:
    one, other = two
    one.counters.starts["fake", "start"] += 2
    other.counters.starts["fake", "start"] += 1
    for metrics, count in ((one, 2), (other, 1)):
        scraped = Scraped(metrics.exposition().decode())
        name = "kernelkeep_kernel_starts_total"
        assert scraped(name, type="fake", reason="start") == count
        assert scraped("kernel_currently_running_total", type="fake") == 0


async def test_names_with_quotes_and_newlines_are_told_safely(two: list[Metrics]) -> None:
    kind = 'a"b\\c\nd'
    two[0].counters.starts[kind, "start"] += 1
    scraped = Scraped(two[0].exposition().decode())
    assert scraped("kernelkeep_kernel_starts_total", type=kind, reason="start") == 1
