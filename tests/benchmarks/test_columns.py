"""The columns of the benchmark: which of them are ours, and which measures are made on which."""

from __future__ import annotations

import pytest

from benchmarks.columns import BARE, BEFORE, FORWARDER, NO_FORK, OURS, STOP, WARM, is_ours, is_peer
from benchmarks.measures import MEASURES


@pytest.mark.parametrize(
    ("column", "ours", "peer"),
    [
        (OURS, True, False),
        (BEFORE, True, False),
        (STOP, True, False),
        (NO_FORK, True, False),
        (WARM, True, False),
        (BARE, False, False),
        (FORWARDER, False, False),
        ("jupyter_server", False, True),
        ("kernelkeeper", False, True),
    ],
)
def test_a_column_is_ours_or_a_peer_or_neither(column: str, ours: bool, peer: bool) -> None:
    assert (is_ours(column), is_peer(column)) == (ours, peer)


def test_it_as_it_comes_and_the_commit_before_are_in_every_measure() -> None:
    for measure in MEASURES:
        assert measure.is_for(OURS)
        assert measure.is_for(BEFORE)
        assert measure.is_for("jupyter_server") == measure.peers


def test_other_settings_are_in_the_measures_they_are_about() -> None:
    about = {name: {m.name for m in MEASURES if m.is_for(name)} for name in (STOP, NO_FORK, WARM)}

    assert about[NO_FORK] == about[WARM] == {"starting", "idle memory"}
    assert "floods" in about[STOP]
    assert "starting" not in about[STOP]
