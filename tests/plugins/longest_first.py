"""Workers take whole files, or tests that are long by themselves, the longest first.

A file's tests share the servers of its fixtures, so one worker runs them all. What takes long comes
first, so that at the end no worker is left alone with it. How long is read from ``durations.json``
beside this file, which ``scripts/durations`` writes; what is not in there is taken for short.
Loaded by `addopts` in pyproject.toml.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

DURATIONS: Final[dict[str, float]] = json.loads(
    Path(__file__).with_name("durations.json").read_text()
)
"""Seconds by the name of a file, or of a test that is to be taken alone."""


def scope_of(nodeid: str) -> str:
    """What one worker runs together with this test: its file, or the test alone."""
    return nodeid if nodeid in DURATIONS else nodeid.split("::")[0]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Assign scopes in the order of collection, which is the longest first."""
    # Only a run with workers calls this; `scripts/bounds` goes without xdist.
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

    class LongestFirst(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return scope_of(nodeid)

    config.option.loadscopereorder = False
    return LongestFirst(config, log)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the tests into this order."""
    items.sort(key=lambda item: -DURATIONS.get(scope_of(item.nodeid), 0))
