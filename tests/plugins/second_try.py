"""A run with ``--last-failed`` ends with the names of the tests that pass only now.

Each is a fault that shows itself now and then: of the test, or of what it tests. Loaded by
`addopts` in pyproject.toml; CI tries once more what has failed (`.ci/run`).
"""

from collections.abc import Generator

import pytest

_FAILED_BEFORE = pytest.StashKey[frozenset[str]]()


@pytest.hookimpl(trylast=True)
def pytest_configure(config: pytest.Config) -> None:
    """Note what has failed before this run notes anew what does."""
    if config.getoption("lf", False) and config.cache is not None:
        before = config.cache.get("cache/lastfailed", {})
        config.stash[_FAILED_BEFORE] = frozenset(before)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Generator[None]:
    """Name them after all else, right before the line with the numbers."""
    yield
    before = terminalreporter.config.stash.get(_FAILED_BEFORE, frozenset())
    outcomes = {
        outcome: {report.nodeid for report in terminalreporter.stats.get(outcome, ())}
        for outcome in ("passed", "failed", "error")
    }
    passed = (outcomes["passed"] & before) - outcomes["failed"] - outcomes["error"]
    if passed:
        terminalreporter.section("passed only when tried again")
        for nodeid in sorted(passed):
            terminalreporter.line(f"FLAKY {nodeid}")
