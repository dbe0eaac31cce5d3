"""Workers take whole files, or what is long by itself, the longest first.

A file's tests share the fixtures of the file, so one worker runs them all; of a long file, each
test function is taken for itself. What takes long comes first, so that at the end no worker is left
alone with it. How long is read from ``durations.json`` beside this file, which
``scripts/durations`` writes. What is not in there is new, may take long, and so comes before all.
Loaded by `addopts` in pyproject.toml.
"""

from __future__ import annotations

import json
from math import inf
from pathlib import Path
from typing import Any, Final

import pytest

DURATIONS: Final[dict[str, float]] = json.loads(
    Path(__file__).with_name("durations.json").read_text()
)
"""Seconds by the name of a file, of a test function, or of a test that is to be taken alone."""


def scope_of(nodeid: str) -> str:
    """What one worker runs together with this test: the test alone, its function, or its file."""
    for scope in (nodeid, nodeid.split("[")[0]):
        if scope in DURATIONS:
            return scope
    return nodeid.split("::")[0]


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
    items.sort(key=lambda item: -DURATIONS.get(scope_of(item.nodeid), inf))
